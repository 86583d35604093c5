"""A node gets a user of its own or none, and is lent what it needs: nothing that others can read, or it can change."""

from __future__ import annotations

import os
import pwd
import stat
from contextlib import nullcontext

import pytest

from hansa_client import flower_node, node_user
from hansa_client.node_user import NodeUser, is_shared
from hansa_client.trainer_link import ACCESS_NAME, new_access
from hansa_client.trainer_service import check_socket_folder
from hansa_common.addresses import Address
from hansa_common.errors import UsageError

ANOTHER = "nobody"


def test_unknown_user_is_told_by_name():
    with pytest.raises(UsageError, match="'no such user'"):
        NodeUser.named("no such user")


def test_user_who_can_read_what_the_trainer_can_is_refused():
    for name in {"root", pwd.getpwuid(os.geteuid()).pw_name}:
        with pytest.raises(UsageError, match="user of its own"):
            NodeUser.named(name)


def test_who_is_not_root_is_told_that_it_takes_root(monkeypatch):
    monkeypatch.setattr(node_user.os, "geteuid", lambda: 12345)
    with pytest.raises(UsageError, match="only root"):
        NodeUser.named(ANOTHER)


def test_command_refuses_it_before_anything_is_started(hansa, tmp_path):
    words = ("--development", "--agreement", tmp_path / "agreement.toml", "--data", tmp_path / "rows.csv")
    more = ("--merchant", "alder", "--state", tmp_path / "state", "--node-user", "root")
    result = hansa("client", "start", *words, *more)
    assert (result.exit_code, list(tmp_path.iterdir())) == (2, [])
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.fixture
def user() -> NodeUser:
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder to another user")
    entry = pwd.getpwnam(ANOTHER)
    return NodeUser(ANOTHER, entry.pw_uid, entry.pw_gid)


def test_shared_folder_is_open_to_the_nodes_group_alone_and_access_is_the_groups_to_read(user, tmp_path):
    folder = tmp_path / "socket"
    folder.mkdir(mode=0o700)
    assert not is_shared(folder)
    user.share(folder)
    assert is_shared(folder)
    check_socket_folder(folder)
    new_access("alder").write(folder)
    for path, mode in ((folder, 0o2750), (folder / ACCESS_NAME, 0o640)):
        found = path.stat()
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (0, user.gid, mode)


def test_folder_that_was_not_shared_on_purpose_is_refused(tmp_path):
    for mode in (0o750, 0o710, 0o2755, 0o2770):
        folder = tmp_path / f"{mode:o}"
        folder.mkdir()
        folder.chmod(mode)
        with pytest.raises(UsageError, match="others can open"):
            check_socket_folder(folder)


def test_lent_file_is_the_nodes_alone_and_cannot_be_changed_at_the_lender(user, tmp_path):
    file, home = tmp_path / "trusted.yaml", tmp_path / "home"
    file.write_text("whom")
    home.mkdir(mode=0o700)
    lent = user.lend(file, home)
    user.give(home)
    found = lent.stat()
    assert (found.st_uid, stat.S_IMODE(found.st_mode), lent.read_text()) == (user.uid, 0o400, "whom")
    assert file.stat().st_uid == 0
    assert home.stat().st_uid == user.uid


def test_link_that_the_node_has_put_in_its_home_is_not_followed_by_root(user, tmp_path):
    """It would overwrite what the link is to, and make it the node's: a node that outlives its start waits for that."""
    file, home, roots = tmp_path / "node.key", tmp_path / "home", tmp_path / "roots"
    file.write_text("the node's")
    roots.write_text("root's")
    home.mkdir(mode=0o700)
    user.give(home)
    (home / file.name).symlink_to(roots)
    with pytest.raises(FileExistsError):
        user.lend(file, home)
    assert (roots.read_text(), roots.stat().st_uid) == ("root's", 0)


def test_node_gets_its_home_once_everything_that_is_lent_is_in_it(user, tmp_path, monkeypatch):
    lent: list[list[str]] = []
    monkeypatch.setattr(NodeUser, "give", lambda _, folder: lent.append(sorted(path.name for path in folder.iterdir())))
    monkeypatch.setattr(flower_node, "running_when_ready", lambda *_, **__: nullcontext((None, "")))
    for name in ("node.key", "trusted.yaml"):
        (tmp_path / name).write_text(name)
    node = flower_node.Node(
        Address("127.0.0.1", 1), tmp_path / "socket", tmp_path, tmp_path / "trusted.yaml", tmp_path / "node.key", user
    )
    with node.running(lambda _: None):
        assert lent == [["node.key", "trusted.yaml"]]
