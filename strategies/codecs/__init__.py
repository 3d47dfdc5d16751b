"""How weights and their changes are written in fewer bytes for their way between a site and the coordinator.

An array that is written here keeps its name, its shape and its dtype, so that nothing else about a message changes.
``planes`` codes bytes without loss, ``formats`` writes and reads one array, ``record`` all arrays of a message by the
plan's codec, and ``feedback`` keeps what a codec left out for the site's next round.
"""
