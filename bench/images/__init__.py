"""The disk images that the tests and the bench copy: a real Debian, and files made to be awkward."""
