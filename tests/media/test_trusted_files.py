"""Files of a user's mount are not trusted, whatever owners it claims."""

from pathlib import Path

import pytest
from tests.support.user_folder import folder_of_user

from whoseblock.media.mounts import fuse_user
from whoseblock.media.trusted_files import UntrustedFileError, check_file, find_trusted, user_name

_USER = 65534


def test_files_that_claim_to_belong_to_root_belong_to_the_user_of_their_mount(
    tmp_path: Path,
) -> None:
    with folder_of_user(tmp_path / "mount", _USER, {"policy": (b"", 0)}) as folder:
        status = (folder / "policy").stat()
        assert (status.st_uid, status.st_mode & 0o777) == (0, 0o600)
        assert fuse_user(status.st_dev) == _USER
        with pytest.raises(UntrustedFileError, match=f"belongs to user {user_name(_USER)}"):
            find_trusted("it", folder / "policy", make=False)
    assert fuse_user(tmp_path.stat().st_dev) == 0
    (tmp_path / "policy").touch()
    check_file(find_trusted("it", tmp_path / "policy", make=False))
