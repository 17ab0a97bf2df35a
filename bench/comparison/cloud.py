"""placeholder"""
import argparse
from typing import List


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cloud", action="store_true")


def main(options: argparse.Namespace, given: List[str]) -> int:
    raise ValueError("not written yet")
