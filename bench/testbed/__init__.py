"""The lab: front-end and hosts on one machine, from namespaces, loop devices and real sshds."""

from bench.testbed.errors import LabError
from bench.testbed.lab import Lab, LabConfig
from bench.testbed.node import Node, NodeProcess
from bench.testbed.tm import TmResult

__all__ = ["Lab", "LabConfig", "LabError", "Node", "NodeProcess", "TmResult"]
