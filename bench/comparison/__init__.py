"""bench/prolog: how long a VM's disks take to be there, with this driver and with the stock ones, in one run.

    values      what was measured, and its JSON
    drivers     the drivers under test, one adapter each
    scenarios   the work that they are given
    site        a lab for it: datastores, images, virtual machines
    meters      bytes on the wire, CPU time, memory
    bounds      what the machine itself can do
    method      rounds: who runs when, and what counts
    checks      whether a disk is what it should be
    report      the table; page and plots: the HTML page
    cloud       the same question put to a real cloud
"""
