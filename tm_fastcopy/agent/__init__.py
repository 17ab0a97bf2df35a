"""The program that runs on a host: it stages, verifies, caches and publishes disks, and reads them back.

Started over ssh by the front-end for one conversation about one VM directory.  Python 3.9 and the wheels of the bundle.
"""
