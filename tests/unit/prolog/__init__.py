"""Tests of bench/prolog that need no lab."""
