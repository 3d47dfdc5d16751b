"""What an annotator draws, what it costs, how it becomes a dense proxy mask, and where to draw next."""
