import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from autoprune.errors import MeasureError
from autoprune.latency.measurements import read_tables
from autoprune.measure.kit import write_kit
from autoprune.measure.remote import Host, run_remotely
from autoprune.measure.subjects import Sampler, Source
from autoprune.network.resnet import SmallResNet

SSHD = shutil.which("sshd") or next(
    (path for path in ("/usr/sbin/sshd",) if os.access(path, os.X_OK)), None
)


@pytest.mark.parametrize(
    "address",
    [
        "-oProxyCommand=touch /tmp/x",
        "a b",
        "user@",
        "user@host;ls",
        "$(id)@host",
        "host:22",
        "",
        "@h",
    ],
)
def test_address_that_could_be_an_option_or_command_is_refused(address):
    with pytest.raises(MeasureError, match="--ssh takes user@host"):
        Host(address)


@pytest.mark.parametrize("address", ["jetson", "root@10.0.0.7", "me.too@board-1.local"])
def test_usual_addresses_are_taken(address):
    assert Host(address).address == address


def test_missing_configuration_is_told(tmp_path):
    with pytest.raises(MeasureError, match="there is no ssh configuration"):
        Host("board", tmp_path / "absent")


@pytest.fixture
def kit(tmp_path):
    source = Source("resnet8", SmallResNet(8).eval(), torch.zeros(1, 3, 16, 16))
    sampler = Sampler([source], alignment=8, kernels=1)
    return write_kit(sampler, tmp_path / "kit with a space", networks=2).folder


@pytest.fixture
def config(tmp_path):
    """An ssh configuration that reaches a server of this machine's own, on a free port."""
    if SSHD is None or shutil.which("ssh") is None or shutil.which("ssh-keygen") is None:
        pytest.skip("no sshd on this machine; on Debian: apt install openssh-server")
    folder = tmp_path / "ssh"
    folder.mkdir(mode=0o700)
    for name in ("host", "client"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(command, check=True)
    (folder / "authorized").write_text((folder / "client.pub").read_text())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\n"
        f"AuthorizedKeysFile {folder}/authorized\nPidFile {folder}/pid\nStrictModes no\n"
        "PermitRootLogin yes\nUsePAM no\nSubsystem sftp internal-sftp\n"
    )
    # A server started by root wants this folder, whatever its configuration.
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    server = subprocess.Popen(
        [SSHD, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=subprocess.PIPE, text=True
    )
    try:
        if not _listens(server, port):
            pytest.skip(f"sshd does not start here: {server.stderr.read()[-300:]}")
        public = (folder / "host.pub").read_text().split()
        (folder / "known").write_text(f"[127.0.0.1]:{port} {public[0]} {public[1]}\n")
        file = folder / "config"
        file.write_text(
            f"Host board\n  HostName 127.0.0.1\n  Port {port}\n  User {getpass.getuser()}\n"
            f"  IdentityFile {folder}/client\n  IdentitiesOnly yes\n"
            f"  UserKnownHostsFile {folder}/known\n"
        )
        yield file
    finally:
        server.terminate()
        server.wait(timeout=10)
        server.stderr.close()


def _listens(server, port):
    for _ in range(100):
        if server.poll() is not None:
            return False
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return True
        time.sleep(0.1)
    return False


def there(kit):
    """Return the folders that kits have left in the home folder of the server's user."""
    return set(Path.home().glob("autoprune-kit-*"))


def test_kit_is_copied_run_and_fetched(kit, config):
    before = there(kit)
    host = Host("board", config, python=sys.executable)
    arguments = ["--runtime", "onnxruntime", "--rounds", "1", "--device", "a 'quoted'; $(name)"]
    results = run_remotely(kit, host, arguments)
    tables = read_tables([results / "networks.csv"])
    assert tables.faults == ()
    assert list(tables.networks["network"]) == ["resnet8#0", "resnet8#1"]
    assert set(tables.networks["device"]) == {"a 'quoted'; $(name)"}
    assert there(kit) == before  # nothing is left behind


def test_script_that_fails_leaves_what_it_measured(kit, config):
    before = there(kit)
    content = json.loads((kit / "kit.json").read_text())
    (kit / "kit.json").write_text(json.dumps({**content, "items": [], "reference": "absent.onnx"}))
    try:
        with pytest.raises(MeasureError, match=r"exit code \d+ on board.*another call goes on"):
            run_remotely(kit, Host("board", config, python=sys.executable), ["--rounds", "1"])
        assert len(there(kit) - before) == 1
    finally:
        for left in there(kit) - before:
            shutil.rmtree(left)


def test_machine_that_is_not_reached_is_told(kit, config):
    config.write_text(config.read_text().replace("IdentityFile", "#IdentityFile"))
    with pytest.raises(MeasureError, match=r"(?s)ssh .* failed:.*Permission denied"):
        run_remotely(kit, Host("board", config), [])
