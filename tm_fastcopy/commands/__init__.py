"""The `fastcopy` command, a module for each of its commands.  They use core, frontend and setup; nothing uses them."""
