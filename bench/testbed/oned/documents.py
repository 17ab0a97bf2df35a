"""The state of the stand-in as the XML documents of OpenNebula 7.

Order and names of the elements follow the schemas that OpenNebula publishes (`share/doc/xsd`); template
values are CDATA, as oned writes them. Times are constants, so that documents can be compared with golden
files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Union

State = Mapping[str, Any]
Value = Union[str, int, Mapping[str, Any], Iterable[Any]]

BORN = 1700000000  # seconds since 1970: every STIME, REGTIME and so on

MEMORY = 16 << 20  # KiB that every host claims to have

DATASTORE_TYPES = {"IMAGE": 0, "SYSTEM": 1, "FILE": 2, "BACKUP": 3}
IMAGE_TYPES = {"OS": 0, "CDROM": 1, "DATABLOCK": 2, "KERNEL": 3, "RAMDISK": 4, "CONTEXT": 5, "BACKUP": 6}

OWNER = "<UID>0</UID><GID>0</GID><UNAME>oneadmin</UNAME><GNAME>oneadmin</GNAME>"
RIGHTS = {"OWNER": (1, 1, 0), "GROUP": (1, 0, 0), "OTHER": (0, 0, 0)}  # use, manage, admin


def cdata(text: object) -> str:
    """Text as one CDATA section, or two where it holds the end mark."""
    return "<![CDATA[" + str(text).replace("]]>", "]]]]><![CDATA[>") + "]]>"


def plain(name: str, value: object) -> str:
    """An element whose text needs no protection: numbers and names that we chose."""
    return f"<{name}>{value}</{name}>"


def plains(fields: Mapping[str, object]) -> str:
    """Such elements, in the order given."""
    return "".join(plain(name, value) for name, value in fields.items())


def attribute(name: str, value: Value) -> str:
    """One template attribute: text, a vector (mapping), or several of either under the same name."""
    if isinstance(value, Mapping):
        inner = "".join(f"<{key}>{cdata(text)}</{key}>" for key, text in sorted(value.items()))
        return f"<{name}>{inner}</{name}>"
    if isinstance(value, (str, int)):
        return f"<{name}>{cdata(value)}</{name}>"
    return "".join(attribute(name, item) for item in value)


def template(name: str, values: Mapping[str, Value]) -> str:
    """A template: its attributes by name."""
    return plain(name, "".join(attribute(key, value) for key, value in sorted(values.items())))


def ids(name: str, values: Iterable[int] = ()) -> str:
    """A list of object ids."""
    return plain(name, "".join(plain("ID", value) for value in values))


def permissions() -> str:
    """The permissions that every object here has."""
    return plain(
        "PERMISSIONS",
        "".join(plain(f"{who}_{what}", bit) for who, bits in RIGHTS.items() for what, bit in zip("UMA", bits)),
    )


def users_of(state: State, image: int) -> list[int]:
    """Ids of the VMs with a disk of that image."""
    return [
        vm["ID"] for vm in state["vms"].values() if any(str(disk.get("IMAGE_ID")) == str(image) for disk in vm["DISKS"])
    ]


def datastore(state: State, item: State) -> str:
    """The DATASTORE document."""
    images = [image["ID"] for image in state["images"].values() if image["DATASTORE_ID"] == item["ID"]]
    return plain(
        "DATASTORE",
        plain("ID", item["ID"]) + OWNER + plain("NAME", item["NAME"]) + permissions()
        + "".join(attribute(key, item[key]) for key in ("DS_MAD", "TM_MAD", "BASE_PATH"))
        + plains({"TYPE": DATASTORE_TYPES[item["TYPE"]], "DISK_TYPE": 0, "STATE": 0})
        + ids("CLUSTERS", [0])
        + plains({"TOTAL_MB": item["TOTAL_MB"], "FREE_MB": item["FREE_MB"],
                  "USED_MB": item["TOTAL_MB"] - item["FREE_MB"]})
        + ids("IMAGES", images) + template("TEMPLATE", item["TEMPLATE"]),
    )  # fmt: skip


def image(state: State, item: State) -> str:
    """The IMAGE document. Its STATE follows from the VMs that use it."""
    users = users_of(state, item["ID"])
    persistent = item["PERSISTENT"]
    status = item.get("STATE", 1 if not users else 8 if persistent else 2)
    return plain(
        "IMAGE",
        plain("ID", item["ID"]) + OWNER + plain("NAME", item["NAME"]) + permissions()
        + plains({"TYPE": IMAGE_TYPES[item["TYPE"]], "DISK_TYPE": 0, "PERSISTENT": int(persistent),
                  "REGTIME": BORN, "MODTIME": item["MODTIME"]})
        + "".join(attribute(key, item[key]) for key in ("SOURCE", "PATH", "FORMAT", "FS"))
        + plains({"SIZE": item["SIZE"], "STATE": status, "PREV_STATE": status, "RUNNING_VMS": len(users),
                  "CLONING_OPS": 0, "CLONING_ID": -1, "TARGET_SNAPSHOT": -1,
                  "DATASTORE_ID": item["DATASTORE_ID"],
                  "DATASTORE": state["datastores"][str(item["DATASTORE_ID"])]["NAME"]})
        + ids("VMS", item.get("VMS", users)) + ids("CLONES") + ids("APP_CLONES")
        + template("TEMPLATE", item["TEMPLATE"])
        + plain("SNAPSHOTS", snapshot_list(item.get("SNAPSHOTS", EMPTY_SNAPSHOTS)))
        + plain("BACKUP_INCREMENTS", attribute("INCREMENT", item.get("INCREMENTS", []))) + ids("BACKUP_DISK_IDS"),
    )  # fmt: skip


EMPTY_SNAPSHOTS = {"ALLOW_ORPHANS": "NO", "CURRENT_BASE": -1, "NEXT_SNAPSHOT": 0}


def snapshot_list(item: State) -> str:
    """What is in a SNAPSHOTS element: its own fields in alphabetical order, then the snapshots."""
    head = "".join(attribute(key, item[key]) for key in sorted(item) if key != "SNAPSHOT")
    return head + "".join(attribute("SNAPSHOT", entry) for entry in item.get("SNAPSHOT", []))


def host(state: State, item: State) -> str:
    """The HOST document."""
    running = [vm["ID"] for vm in state["vms"].values() if vm["HISTORY"] and vm["HISTORY"][-1]["HID"] == item["ID"]]
    disk = plains({"DISK_USAGE": 0, "FREE_DISK": 0, "MAX_DISK": 0, "USED_DISK": 0})
    share = plains({"MEM_USAGE": 0, "CPU_USAGE": 0, "TOTAL_MEM": MEMORY, "TOTAL_CPU": 800, "MAX_MEM": MEMORY,
                    "MAX_CPU": 800, "RUNNING_VMS": len(running), "VMS_THREAD": 1})  # fmt: skip
    share += plain("DATASTORES", disk) + plain("PCI_DEVICES", "") + plain("NUMA_NODES", "")
    return plain(
        "HOST",
        plains({"ID": item["ID"], "NAME": item["NAME"], "STATE": item["STATE"], "PREV_STATE": item["STATE"]})
        + attribute("IM_MAD", "kvm") + attribute("VM_MAD", "kvm")
        + plains({"CLUSTER_ID": 0, "CLUSTER": "default"})
        + plain("HOST_SHARE", share) + ids("VMS", running) + template("TEMPLATE", item["TEMPLATE"])
        + plain("MONITORING", ""),
    )  # fmt: skip


def record(vm: State, entry: State, sequence: int) -> str:
    """One HISTORY element."""
    ended = 0 if entry is vm["HISTORY"][-1] else BORN
    return plain(
        "HISTORY",
        plains({"OID": vm["ID"], "SEQ": sequence, "HOSTNAME": entry["HOSTNAME"], "HID": entry["HID"],
                "CID": 0, "STIME": BORN, "ETIME": ended})
        + attribute("VM_MAD", "kvm") + attribute("TM_MAD", entry["TM_MAD"])
        + plains({"DS_ID": entry["DS_ID"], "PLAN_ID": -1, "ACTION_ID": -1, "PSTIME": entry.get("PSTIME", BORN),
                "PETIME": entry.get("PETIME", ended),
                  "RSTIME": 0, "RETIME": 0, "ESTIME": 0, "EETIME": 0, "ACTION": 0, "UID": -1, "GID": -1,
                  "REQUEST_ID": -1}),
    )  # fmt: skip


def vm(state: State, item: State) -> str:
    """The VM document."""
    system = item["HISTORY"][-1]["TM_MAD"] if item["HISTORY"] else ""
    values = {"CPU": "1", "MEMORY": "128", "VMID": str(item["ID"]), "TM_MAD_SYSTEM": system,
              **item["TEMPLATE"], "DISK": item["DISKS"]}  # fmt: skip
    history = "".join(record(item, entry, seq) for seq, entry in enumerate(item["HISTORY"]))
    snapshots = "".join(plain("SNAPSHOTS", snapshot_list(entry)) for entry in item["SNAPSHOTS"])
    return plain(
        "VM",
        plain("ID", item["ID"]) + OWNER + plain("NAME", item["NAME"]) + permissions()
        + plains({"LAST_POLL": 0, "STATE": item["STATE"], "LCM_STATE": item["LCM_STATE"],
                  "PREV_STATE": item["STATE"], "PREV_LCM_STATE": item["LCM_STATE"], "RESCHED": 0,
                  "STIME": BORN, "ETIME": 0})
        + attribute("DEPLOY_ID", item["DEPLOY_ID"]) + plain("MONITORING", "") + ids("SCHED_ACTIONS")
        + template("TEMPLATE", values) + template("USER_TEMPLATE", item["USER_TEMPLATE"])
        + plain("HISTORY_RECORDS", history) + snapshots
        + plain("BACKUPS", attribute("BACKUP_CONFIG", item.get("BACKUP_CONFIG", {})) + ids("BACKUP_IDS")),
    )  # fmt: skip


NOWHERE: State = {"HOSTNAME": "", "HID": -1, "DS_ID": -1, "TM_MAD": ""}
SHORT_DISK = ("DATASTORE_ID", "DISK_ID", "IMAGE", "IMAGE_ID", "SIZE", "TYPE")


def vm_short(state: State, item: State) -> str:
    """The VM as the pool lists it without details."""
    disks = [{key: disk[key] for key in SHORT_DISK if key in disk} for disk in item["DISKS"]]
    last = item["HISTORY"][-1] if item["HISTORY"] else NOWHERE
    history = plains({"OID": item["ID"], "SEQ": len(item["HISTORY"]) - 1, "HOSTNAME": last["HOSTNAME"],
                      "HID": last["HID"], "CID": 0, "DS_ID": last["DS_ID"]})  # fmt: skip
    history += attribute("VM_MAD", "kvm") + attribute("TM_MAD", last["TM_MAD"]) + plain("ACTION", 0)
    return plain(
        "VM",
        plain("ID", item["ID"]) + OWNER + plain("NAME", item["NAME"])
        + plains({"LAST_POLL": 0, "STATE": item["STATE"], "LCM_STATE": item["LCM_STATE"], "RESCHED": 0,
                  "STIME": BORN, "ETIME": 0})
        + attribute("DEPLOY_ID", item["DEPLOY_ID"])
        + plain("TEMPLATE", plains({"CPU": 1, "MEMORY": 128, "VCPU": 1}) + attribute("DISK", disks))
        + template("USER_TEMPLATE", item["USER_TEMPLATE"])
        + plain("HISTORY_RECORDS", plain("HISTORY", history)),
    )  # fmt: skip
