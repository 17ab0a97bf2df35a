"""Tree: a qcow2 disk as the stock `local` driver lays it out, and the one way such a tree gets its final name.

    disk.0 -> disk.0.snap/0      a relative link to the active file
    disk.0.snap/0                the disk; what a VM's snapshots need are further numbers beside it

Write order of `publish_tree`, all in the directory of the disk (docs/DESIGN.md argues it):

    stage the file in the staging tree -> fsync -> its number -> fsync of the tree -> the link, staged -> fsync
      -> exchange of the trees -> rename of the link -> fsync -> receipt -> discard the old tree

A reader goes through the link into one tree: it meets the old file, none, or the new one, each whole, and never a file
of one tree beside one of the other.  Where names cannot be exchanged, the old tree first steps aside under a name that
stands for nothing else: that name is the intent, which `settle` undoes or finishes before anything else is done.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from typing import Callable, Collection, NamedTuple

from .errors import Refused, Superseded
from .files import Files, lock
from .paths import has, is_mount, is_named, list_names, open_directory
from .publish import Staged, is_staging, make_durable, receipt_for, staging_name, still_ours
from .receipt import Receipt

ACTIVE = "0"
"""The active file of a tree that was just made."""

_NUMBER = "[0-9]{1,9}"
_DEEPEST = 16  # directories below each other that are removed; the layouts have two, and a recursion must end


def tree_name(final: str) -> str:
    """Name of the tree beside the link *final*."""
    return f"{final}.snap"


def aside_name(final: str) -> str:
    """Name under which an old tree steps aside where names cannot be exchanged."""
    return f".{tree_name(final)}.fastcopy.old"


# --- reading -----------------------------------------------------------------------------------------------------


class Active(NamedTuple):
    """Where the active file of a disk lies: a descriptor of its directory, to be closed; its name there; whether that
    directory is a tree.
    """

    directory: int
    name: str
    in_tree: bool


def find_active(directory: int, final: str, shown: str) -> Active:
    """Where the active file of the disk *final* lies: that is *final* itself if it is no link.

    Only the layout's own link is followed, and no link behind it: `Refused` for any other; FileNotFoundError if it
    leads nowhere.  The file may be missing, or something else than a file: that is for who opens it to see.
    """
    status = has(directory, final)
    if status is None or not stat.S_ISLNK(status.st_mode):
        return Active(os.dup(directory), final, False)
    target = os.readlink(final, dir_fd=directory)
    match = re.fullmatch(re.escape(tree_name(final)) + f"/({_NUMBER})", target)
    if match is None:
        raise Refused(f"{shown} is a symbolic link out of its own layout, which is not followed")
    if has(directory, tree_name(final)) is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"{shown}.snap")
    return Active(open_directory(directory, tree_name(final), f"{shown}.snap"), match.group(1), True)


def check_alone(directory: int, final: str, active: Active, shown: str) -> None:
    """Raise `Refused` if the tree of *final* holds anything but its active file: snapshots, which would be lost.

    Staging files are nothing, nor is a link of the tree to itself, which the stock drivers for shared storage make.
    """
    if has(directory, tree_name(final)) is None:
        return
    tree = open_directory(directory, tree_name(final), f"{shown}.snap")
    try:
        others = sorted(name for name in list_names(tree) if not _is_nothing(tree, name, final))
    finally:
        os.close(tree)
    if [name for name in others if not (active.in_tree and name == active.name)]:
        raise Refused(
            f"{shown} has snapshots ({tree_name(final)} holds {', '.join(others)[:200]}), which this driver does not "
            "carry yet: delete or flatten them and repeat the action"
        )


def _is_nothing(tree: int, name: str, final: str) -> bool:
    if is_staging(name):
        return True
    if name != tree_name(final):
        return False
    status = has(tree, name)
    return status is not None and stat.S_ISLNK(status.st_mode)


# --- publishing --------------------------------------------------------------------------------------------------


def open_staging_tree(
    files: Files, parent: int, final: str, members: Collection[str] = (ACTIVE,), alone: bool = False
) -> int:
    """A descriptor of the directory in which the tree of *final* is staged; only staging files may be left in it.

    Finishes or undoes first what was cut off.  A file of *members* is staged as `staging_name` of its name.  *alone*
    holds a lock on it (where no guard does): `Refused`, with nothing touched, if another is at work in it.
    """
    settle(files, parent, final)
    name = staging_name(tree_name(final))
    status = has(parent, name)
    if status is not None and not stat.S_ISDIR(status.st_mode):
        files.unlink(parent, name)
    files.make_directory(parent, name, 0o755)
    tree = open_directory(parent, name, name)
    try:
        if alone and not lock(tree):
            raise Refused(f"another action is just making {final} and its snapshots: repeat this one after it")
        # The rest is an old tree whose successor has its name, or a tree that was not published.  An old tree's
        # active file must not be written: something may still have it open.
        kept = {staging_name(member) for member in members}
        for left in list_names(tree):
            if left not in kept:
                remove_tree(files, tree, left, left)
    except BaseException:
        os.close(tree)
        raise
    return tree


def drop_staging_tree(files: Files, parent: int, final: str) -> None:
    """Remove the staging tree if nothing is in it."""
    try:
        files.remove_directory(parent, staging_name(tree_name(final)))
    except OSError:
        pass  # something is in it


def clear_staging_tree(files: Files, parent: int, final: str, tree: int) -> None:
    """Remove all that is staged in the tree, open as *tree*: it cannot be completed, and only keeps a disk full.

    Does nothing if the staging name is not its own: then it has been published, and what has the name is the old tree.
    """
    name = staging_name(tree_name(final))
    if is_named(parent, name, tree):
        remove_tree(files, parent, name, name)


def discard_staged(files: Files, parent: int, final: str, alone: bool = False) -> bool:
    """Remove the file and the tree that are staged for *final*; what has these names stays.

    *alone* is for where no guard is held: False if another is at work there, whose files stay.  `Refused`, with nothing
    touched, where a publication was cut off: what is staged may be what it needs to be completed.
    """
    link, tree = staging_name(final), staging_name(tree_name(final))
    status = has(parent, link)
    if has(parent, aside_name(final)) is not None or (status is not None and stat.S_ISLNK(status.st_mode)):
        raise Refused(f"an earlier action was cut off when it gave {final} its name: repeat it, and it is completed")
    free = True
    for name in (link, tree):
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
        except FileNotFoundError:
            continue
        try:
            if alone and not lock(fd):
                free = False
            elif is_named(parent, name, fd):  # by now it may be another's
                remove_tree(files, parent, name, name)
        finally:
            os.close(fd)
    return free


def publish_tree(
    files: Files,
    parent: int,
    staged: Staged,
    final: str,
    path: str,
    mode: int,
    last_look: Callable[[], None] = lambda: None,
) -> Receipt:
    """Give a file that is staged in the staging tree of *final* its place in the layout; return the receipt.

    *parent* is the open directory of the disk, *path* the full path of *final*.  What stood there before, a tree or a
    flat file, is replaced, and deleted on the receipt.  *last_look* is called after the fsync, which may take minutes,
    and again right before the trees are exchanged; what it raises stops the publication.
    """
    tree, link = staged.directory, staging_name(final)
    make_durable(files, staged, mode)
    last_look()
    still_ours(staged)
    files.rename(tree, staged.name, ACTIVE)
    files.sync_directory(tree)
    files.unlink(parent, link)
    files.make_link(parent, link, f"{tree_name(final)}/{ACTIVE}")
    files.sync_directory(parent)
    last_look()
    if not is_named(parent, staging_name(tree_name(final)), tree):
        raise Superseded(f"another action has taken the staging tree of {path} away; repeat this one")
    _take_place(files, parent, final)
    files.rename(parent, link, final)
    files.sync_directory(parent)
    receipt = receipt_for(staged, f"{path}.snap/{ACTIVE}")
    for old in (staging_name(tree_name(final)), aside_name(final)):
        discard_tree(files, parent, old, receipt, tree)
    return receipt


def publish_members(
    files: Files,
    parent: int,
    tree: int,
    final: str,
    path: str,
    active: str,
    last_look: Callable[[], None] = lambda: None,
) -> None:
    """Give the staging tree, open as *tree*, its place: its files have their names in it, and are durable.

    *active* is the number that the link *final* leads to afterwards ("": there is none, the disk lies beside the tree).
    What stood there before is replaced, and removed: its successor is whole and durable, and has its name.
    """
    link = staging_name(final)
    _drop_intent(files, parent, final)
    if active:
        _write_intent(files, tree, active)
        files.unlink(parent, link)
        files.make_link(parent, link, f"{tree_name(final)}/{active}")
    else:
        _drop_link(files, parent, link)
    files.sync_directory(tree)
    files.sync_directory(parent)
    last_look()
    if not is_named(parent, staging_name(tree_name(final)), tree):
        raise Superseded(f"another action has taken the staging tree of {path} away; repeat this one")
    _take_place(files, parent, final)
    if active:
        files.rename(parent, link, final)
    files.sync_directory(parent)
    files.unlink(tree, INTENT)
    for old in (staging_name(tree_name(final)), aside_name(final)):
        if not is_named(parent, old, tree):
            remove_tree(files, parent, old, old)


INTENT = staging_name("active")
"""In a tree whose link may not have its name yet: the number that the link is to lead to."""


def _write_intent(files: Files, tree: int, active: str) -> None:
    files.unlink(tree, INTENT)
    fd = files.create(tree, INTENT)
    try:
        files.write(fd, active.encode(), 0)
        files.sync(fd)
    finally:
        os.close(fd)


def _drop_intent(files: Files, parent: int, final: str) -> None:
    """An intent that is left from before must not be taken for one of what comes now."""
    status = has(parent, tree_name(final))
    if status is None or not stat.S_ISDIR(status.st_mode):
        return
    old = open_directory(parent, tree_name(final), tree_name(final))
    try:
        if has(old, INTENT) is not None:
            files.unlink(old, INTENT)
            files.sync_directory(old)
    finally:
        os.close(old)


def _drop_link(files: Files, parent: int, link: str) -> None:
    """A link that is staged from before must not be taken for one of what comes now; a file there is to be resumed."""
    status = has(parent, link)
    if status is not None and stat.S_ISLNK(status.st_mode):
        files.unlink(parent, link)


def _follow_intent(files: Files, parent: int, final: str) -> None:
    """Rename the link if its tree has its name already, and nothing else has happened since."""
    link = staging_name(final)
    status = has(parent, link)
    if status is None or not stat.S_ISLNK(status.st_mode) or has(parent, tree_name(final)) is None:
        return
    tree = open_directory(parent, tree_name(final), tree_name(final))
    try:
        try:
            fd = os.open(INTENT, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=tree)
        except OSError:
            return
        try:
            number = os.read(fd, 16).decode("ascii", "replace")
        finally:
            os.close(fd)
        if os.readlink(link, dir_fd=parent) == f"{tree_name(final)}/{number}" and has(tree, number) is not None:
            files.rename(parent, link, final)
            files.sync_directory(parent)
            files.unlink(tree, INTENT)
    finally:
        os.close(tree)


def point_link(files: Files, parent: int, final: str, number: str, last_look: Callable[[], None]) -> None:
    """Have the link *final* lead to the file *number* of its tree, in one step, durably."""
    link = staging_name(final)
    last_look()
    files.unlink(parent, link)
    files.make_link(parent, link, f"{tree_name(final)}/{number}")
    files.rename(parent, link, final)
    files.sync_directory(parent)


def _take_place(files: Files, parent: int, final: str) -> None:
    """Give the staged tree its name, and the old one, if there is one, the staging name or the one aside."""
    staging, name = staging_name(tree_name(final)), tree_name(final)
    if has(parent, name) is None:
        files.rename(parent, staging, name)
        return
    if not files.exchange(parent, staging, name):
        files.rename(parent, name, aside_name(final))
        files.sync_directory(parent)
        files.rename(parent, staging, name)
    # The link may name another number than the old one did: it must not get its name before the tree has.
    files.sync_directory(parent)


def settle(files: Files, parent: int, final: str) -> None:
    """Finish or undo an exchange of trees that was cut off between two renames.  Does nothing where there was none.

    The old tree steps aside only when the new one is whole and durable.  If nothing has the name, the old tree gets it
    back; if the new tree has it, the link follows, unless it leads into that tree already: the VM may have run since,
    and have a snapshot.
    """
    aside, name = aside_name(final), tree_name(final)
    if has(parent, aside) is None:
        _follow_intent(files, parent, final)
        return
    if has(parent, name) is None:
        files.rename(parent, aside, name)
        files.sync_directory(parent)
        return
    _follow_intent(files, parent, final)
    if _lost_its_link(parent, final):
        link = staging_name(final)
        files.unlink(parent, link)
        files.make_link(parent, link, f"{name}/{ACTIVE}")
        files.rename(parent, link, final)
    files.sync_directory(parent)
    remove_tree(files, parent, aside, aside)


def _lost_its_link(parent: int, final: str) -> bool:
    """Whether *final* is to be a link into its tree, and is none that leads there.

    The link is staged, durably, before a tree takes its place.  Where there is none, *final* may be a raw disk, of
    which the tree has the snapshots.
    """
    staged, status = has(parent, staging_name(final)), has(parent, final)
    to_come = staged is not None and stat.S_ISLNK(staged.st_mode)
    dangling = status is not None and stat.S_ISLNK(status.st_mode)
    return (to_come or dangling) and not _leads_somewhere(parent, final)


def _leads_somewhere(parent: int, final: str) -> bool:
    """Whether *final* is the layout's link to a file that is there."""
    try:
        active = find_active(parent, final, final)
    except (Refused, FileNotFoundError):
        return False
    try:
        return active.in_tree and has(active.directory, active.name) is not None
    finally:
        os.close(active.directory)


def discard_tree(files: Files, parent: int, name: str, receipt: Receipt, tree: int) -> None:
    """Delete the old tree *name*, which the receipt's file, in the open directory *tree*, supersedes.

    `Refused` if the receipt does not hold.
    """
    if has(parent, name) is None:
        return
    if is_named(parent, name, tree):
        raise Refused(f"{receipt.path} cannot be deleted on the strength of its own receipt")
    receipt.confirm(tree)
    remove_tree(files, parent, name, name)


def remove_tree(files: Files, directory: int, name: str, shown: str, depth: int = 0) -> None:
    """Remove a file, a link or a tree; it is no error if it is not there.

    No link is followed, and no other file system entered.  *shown* is its name in errors.
    """
    status = has(directory, name)
    if status is None:
        return
    if not stat.S_ISDIR(status.st_mode):
        files.unlink(directory, name)
        return
    if depth >= _DEEPEST:
        raise Refused(f"{shown} is nested deeper than anything of ours; look at it and remove it by hand")
    below = open_directory(directory, name, shown)
    try:
        if is_mount(directory, below):
            raise Refused(f"{shown} is a mount point; unmount it and repeat the action")
        if status.st_mode & 0o300 != 0o300:
            files.chmod(below, 0o700)  # in a read-only directory nothing can be removed
        for entry in list_names(below):
            remove_tree(files, below, entry, f"{shown}/{entry}", depth + 1)
    finally:
        os.close(below)
    files.remove_directory(directory, name)
