"""Puts the driver into an OpenNebula, and takes it out again.

Standard library only, and nothing of what an installation brings: this runs before there is one.  `setup` may use
`core` and what of `frontend` needs no other package; neither of them knows of it.
"""
