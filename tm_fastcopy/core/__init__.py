"""What the front-end and the agent share: values, formats and the one way a file gets its name.

Nothing here knows ssh, asyncio, OpenNebula, or which side it runs on.  It runs on Python 3.9.
"""
