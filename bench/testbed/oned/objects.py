"""What the stand-in remembers of datastores, images, hosts and VMs: plain values, as they lie in the state file.

Keys are the names of the XML documents. What oned would fill in by itself is filled in here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.testbed.errors import LabError
from bench.testbed.oned import documents

Item = dict[str, Any]

TOTAL_MB = 1 << 20  # what every datastore says it has; half of it is free
ACTIVE, PROLOG = 3, 1  # a VM's STATE and LCM_STATE while its disks are made

# How oned.conf describes the drivers; what a datastore's template inherits from there.
TM_CONF = {"LN_TARGET": "SYSTEM", "CLONE_TARGET": "SYSTEM", "SHARED": "NO", "ALLOW_ORPHANS": "FORMAT"}


def nothing() -> Item:
    """A state without any object."""
    return {"vms": {}, "images": {}, "datastores": {}, "hosts": {}}


def datastore(
    id: int, name: str, type: str, tm_mad: str, path: str, template: Mapping[str, Any], ds_mad: str = "fs"
) -> Item:
    """A datastore of `type` IMAGE, SYSTEM, FILE or BACKUP, whose directory is `path`."""
    ds_mad = "-" if type == "SYSTEM" else ds_mad
    own = {"DS_MAD": ds_mad, "TM_MAD": tm_mad, "TYPE": f"{type}_DS"}
    safety = {"RESTRICTED_DIRS": "/", "SAFE_DIRS": "/var/tmp"}
    return {
        "ID": id,
        "NAME": name,
        "TYPE": type,
        "TM_MAD": tm_mad,
        "DS_MAD": ds_mad,
        "BASE_PATH": path,
        "TOTAL_MB": TOTAL_MB,
        "FREE_MB": TOTAL_MB // 2,
        "TEMPLATE": {**TM_CONF, **own, **safety, **template},
    }


def image(
    id: int, name: str, datastore_id: int, source: str, size_mb: int, format: str, persistent: bool, type: str
) -> Item:
    """An image of `size_mb` MiB whose file is `source`."""
    return {
        "ID": id,
        "NAME": name,
        "DATASTORE_ID": datastore_id,
        "SOURCE": source,
        "PATH": "",
        "SIZE": size_mb,
        "FORMAT": format,
        "FS": "",
        "PERSISTENT": persistent,
        "TYPE": type,
        "MODTIME": documents.BORN,
        "TEMPLATE": {"DEV_PREFIX": "vd"},
    }


def host(id: int, name: str, state: int, template: Mapping[str, Any]) -> Item:
    """A host."""
    values = {"HYPERVISOR": "kvm", "HOSTNAME": name, **template}
    return {"ID": id, "NAME": name, "STATE": state, "TEMPLATE": values}


def vm(state: Item, id: int, host: str, ds_id: int, disks: Sequence[Mapping[str, Any]]) -> Item:
    """A VM in its prolog. LabError if host, datastore or an image is not in `state`."""
    return {
        "ID": id,
        "NAME": f"vm-{id}",
        "STATE": ACTIVE,
        "LCM_STATE": PROLOG,
        "DEPLOY_ID": "",
        "TEMPLATE": {},
        "USER_TEMPLATE": {},
        "SNAPSHOTS": [],
        "DISKS": [disk_of(state, number, given) for number, given in enumerate(disks)],
        "HISTORY": [place(state, host, ds_id)],
    }


def place(state: Mapping[str, Any], host: str, ds_id: int) -> dict[str, Any]:
    """A history record's own part: where the VM is."""
    number = next((item["ID"] for item in state["hosts"].values() if item["NAME"] == host), None)
    datastore = state["datastores"].get(str(ds_id))
    if number is None or datastore is None:
        raise LabError(f"The stand-in for oned has no host {host} or no datastore {ds_id}.")
    return {"HOSTNAME": host, "HID": number, "DS_ID": ds_id, "TM_MAD": datastore["TM_MAD"]}


def disk_of(state: Mapping[str, Any], number: int, given: Mapping[str, Any]) -> dict[str, Any]:
    """A DISK vector: what oned would fill in, under what was given."""
    disk: dict[str, Any] = {"DISK_ID": number, "TARGET": f"vd{chr(ord('a') + number)}"}
    if "IMAGE_ID" in given:
        image = state["images"].get(str(given["IMAGE_ID"]))
        if image is None:
            raise LabError(f"The stand-in for oned has no image {given['IMAGE_ID']}.")
        disk.update(from_image(image, state["datastores"][str(image["DATASTORE_ID"])]))
    else:
        disk.update({"DISK_TYPE": "FILE", "DRIVER": "raw", "FORMAT": "raw", "SIZE": 1, "TYPE": "fs"})
    disk.update(given)
    return {key: str(value) for key, value in disk.items()}


def from_image(image: Mapping[str, Any], datastore: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes that a disk takes over from its image and that image's datastore."""
    persistent = image["PERSISTENT"]
    return {
        "ALLOW_ORPHANS": datastore["TEMPLATE"]["ALLOW_ORPHANS"],
        "CLONE": "NO" if persistent else "YES",
        "CLONE_TARGET": datastore["TEMPLATE"]["CLONE_TARGET"],
        "LN_TARGET": datastore["TEMPLATE"]["LN_TARGET"],
        "CLUSTER_ID": 0,
        "DATASTORE": datastore["NAME"],
        "DATASTORE_ID": datastore["ID"],
        "DEV_PREFIX": image["TEMPLATE"]["DEV_PREFIX"],
        "DISK_TYPE": "FILE",
        "DRIVER": image["FORMAT"],
        "FORMAT": image["FORMAT"],
        "IMAGE": image["NAME"],
        "IMAGE_STATE": 8 if persistent else 2,
        "ORIGINAL_SIZE": image["SIZE"],
        "READONLY": "NO",
        "SAVE": "YES" if persistent else "NO",
        "SIZE": image["SIZE"],
        "SOURCE": image["SOURCE"],
        "TM_MAD": datastore["TM_MAD"],
        "TYPE": "CDROM" if image["TYPE"] == "CDROM" else "FILE",
        **({"PERSISTENT": "YES"} if persistent else {}),
    }
