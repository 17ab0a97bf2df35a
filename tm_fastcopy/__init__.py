"""fastcopy: a Transfer Manager driver for OpenNebula that makes virtual machines start fast."""

__version__ = "0.1.0"
