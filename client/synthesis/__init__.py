"""Images from labels: generators that learn from what a site has drawn, and what is asked of their images before use.

Nothing here sees a truth, and no generator, nor any image it makes, leaves the site unless the site's policy says so.
"""
