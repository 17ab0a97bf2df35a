"""Crash walk, power cuts, faulty links and deliberate breakages."""
