"""What runs beside oned: it asks oned, reads and writes the image datastores, and drives the agents on the hosts."""
