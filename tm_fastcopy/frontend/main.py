"""Entry: runs one action in this process, and tells oned how it went.

On standard error, lines that begin with `INFO: [<VM>] <action>: ` are log lines for oned.  All other lines would be
glued into the VM's error, so exactly one is printed, and only when the action failed.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Callable, List, Mapping, Optional

from . import standard_input
from .call import Call
from .perform import Log, log_line, perform, sentence, unknown
from .progress import narrate
from .running import Running
from .services import Services


def main(argv: List[str], environ: Mapping[str, str] = os.environ) -> int:
    """Run the action argv[0] with the arguments that follow; return the exit code."""
    problem = unknown(argv)
    if problem:
        return _fail(problem)
    given = standard_input.read(argv[0])
    return run_action(argv[0], lambda log: Call(argv[1:], environ, log, Services(), stdin=given))


def run_action(action: str, make_call: Callable[[Log], Call]) -> int:
    """Run an action on the call that *make_call* makes of a log function; return the exit code."""
    try:
        problem = asyncio.run(_supervised(action, make_call))
    except asyncio.CancelledError:
        problem = f"{action} was ended by a signal; the destination is as it was, or complete: repeat the action"
    return _fail(problem) if problem else 0


async def _supervised(action: str, make_call: Callable[[Log], Call]) -> Optional[str]:
    """Run the action; SIGTERM and SIGINT cancel it, so that connections are closed and guards released.

    What asyncio would print by itself goes to the log: on standard error it would become a part of the VM's error.
    """

    running = Running(action)

    def log(text: str) -> None:
        print(log_line(action, text, running.vm), file=sys.stderr, flush=True)

    def make() -> Call:
        running.call = make_call(log)
        return running.call

    task = asyncio.ensure_future(perform(action, make))
    telling = asyncio.ensure_future(narrate(lambda seconds: log(running.line(seconds))))
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: log(f"{context['message']}: {context.get('exception')!r}"))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, task.cancel)
    try:
        return await task
    finally:
        telling.cancel()
        if running.call:
            await running.call.services.close()


def _fail(text: str) -> int:
    print(sentence(text), file=sys.stderr, flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
