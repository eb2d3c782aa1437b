"""A step looks again at the filesystem that it was planned for, before it changes anything."""

from collections.abc import Iterator

import pytest
from demo.demo import unpack

from whoseblock.lookup import Lookup
from whoseblock.respond.exceptions import RefusedError
from whoseblock.respond.freezing import FreezeJournal
from whoseblock.respond.planning import Act
from whoseblock.respond.privileges import PrivilegeJournal
from whoseblock.respond.repair import carry_out
from whoseblock.respond.sites import Site
from whoseblock.respond.steps import ReplacementDigest, StepParameters, StepRecords
from whoseblock.target import Target, TargetOptions


@pytest.fixture(name="site", scope="module")
def _site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    image = tmp_path_factory.mktemp("repair") / "disk.img"
    unpack(image)
    with Target(str(image), TargetOptions()) as target, Lookup(target.open_leaf) as finder:
        assert target.layer is not None
        yield Site(target.layer, finder.leaf(target.layer), str(image), 0)


def act(kind: Act, site: Site, identity: str) -> str:
    """Carry out an act on the first block, which is metadata, and return why it is refused."""
    step = StepParameters(layer=site.layer.name, identity=identity, start=0, length=4096)
    nothing = PrivilegeJournal((), lambda _records: None)
    unfrozen = FreezeJournal(None, lambda _record: None)
    records = StepRecords(ReplacementDigest("", lambda _digest, _sources: None), nothing, unfrozen)
    with pytest.raises(RefusedError) as refused:
        carry_out(kind, step, site, None, records)
    return str(refused.value)


@pytest.mark.parametrize("kind", [Act.ZERO, Act.RESTORE, Act.PUNCH])
def test_an_unknown_identity_matches_none(site: Site, kind: Act) -> None:
    nothing = site._replace(space=None)
    assert nothing.identity == ""
    for one, identity in (nothing, ""), (nothing, site.identity), (site, ""):
        assert "the identity of its filesystem is unknown" in act(kind, one, identity)
    assert "another filesystem than when it was planned" in act(kind, site, f"{site.identity}1")


def test_file_data_of_an_unmounted_filesystem_is_not_changed(site: Site) -> None:
    for kind in Act.RESTORE, Act.PUNCH:
        assert "mount it" in act(kind, site, site.identity)


def test_an_act_that_the_filesystem_does_not_support_is_refused(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(site.space), "capabilities", frozenset())
    assert "cannot zero free blocks on this xfs without" in act(Act.ZERO, site, site.identity)
