"""One module for each TM action: what it asks oned, what it checks, and which transfer it starts."""
