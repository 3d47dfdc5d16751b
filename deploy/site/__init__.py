"""`wardround site`: one hospital of a federation, from its invitation to its leave."""
