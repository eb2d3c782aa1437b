"""Find the rule of the policy that matches an owner."""

from collections import defaultdict
from collections.abc import Mapping

from whoseblock.fs.base import Answer, FileOwner, Owner
from whoseblock.media.mounts import devices_of, read_mounts
from whoseblock.stack.kernel.host import Host
from whoseblock.watch.policy.rules import Policy, Rule

__all__ = ["match_rule", "match_rules", "mount_points"]


def match_rules(
    policy: Policy, answer: Answer, device: str, points: Mapping[str, set[str]]
) -> list[tuple[Rule, list[Owner]]]:
    """Return the rules that apply to an answer, each with the owners that it matches.

    ``points`` holds the mount points of the filesystem on each layer.
    """
    chosen: dict[int, tuple[Rule, list[Owner]]] = {}
    for row in answer:
        way = {via.layer for via in row.via} if isinstance(row.via, tuple) else set()
        number = match_rule(policy, row, way | {device}, points)
        if number is not None:
            chosen.setdefault(number, (policy.rules[number], []))[1].append(row)
    return [chosen[number] for number in sorted(chosen)]


def match_rule(
    policy: Policy, row: Owner, devices: set[str], points: Mapping[str, set[str]]
) -> int | None:
    """Return the number of the first rule that matches an owner, None if none does.

    ``devices`` are the layers from the failure to its filesystem.
    """
    where = set().union(*(points.get(name, set()) for name in devices))
    paths = set[str]()
    kind = row.kind
    if isinstance(row, FileOwner):
        kind = "unwritten" if row.unwritten else kind
        for names in (row.paths, row.mounted_at):
            paths |= set(names) if isinstance(names, tuple) else set()
    matches = (rule.matches(kind, devices, where, paths) for rule in policy.rules)
    return next((number for number, fit in enumerate(matches) if fit), None)


def mount_points(host: Host) -> dict[str, set[str]]:
    """Return the mount points of each device, by its kernel name and by the name of its layer."""
    points: dict[str, set[str]] = defaultdict(set)
    for mount in read_mounts(host.read_text(host.root / "proc/self/mountinfo") or ""):
        # Only a live machine shows which devices a filesystem has besides the one that is listed.
        devices = devices_of(mount) if host.live else {mount.device}
        for name in filter(None, map(host.find_device_by_number, devices)):
            points[name].add(mount.point)
            points[host.find_layer_name(name)].add(mount.point)
    return points
