"""Tools that test, show and measure fastcopy on one machine; nothing here is installed with the driver."""
