"""A Slurm cluster of one node on this machine, for the tests: as root, without systemd, from Debian's packages.

It enforces memory limits by polling, time limits to the minute, and keeps no accounts. Two partitions of the same node.
A job that is queued again waits for `cred_expire` seconds, two minutes by default.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

PACKAGES = ("slurm-wlm", "munge")
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "squeue", "scancel", "scontrol")
PARTITIONS = ("processors", "accelerators")
PLACE = Path("/etc/slurm/slurm.conf")
"""Where Debian's Slurm looks. The variable SLURM_CONF will not do: the executor takes SLURM_* from the jobs."""

CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=cred_expire=20
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SwitchType=switch/none
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
ReturnToService=2
SlurmdTimeout=20
KillWait=5
MinJobAge=3600
SchedulerParameters=sched_interval=5,bf_interval=5
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory={memory} State=UNKNOWN
"""


def unavailable() -> str | None:
    """Why no cluster can be brought up here; None where one can. Installs the packages if they are missing."""
    if sys.platform != "linux":
        return "Slurm needs Linux"
    if os.geteuid() != 0:
        return "only root can bring up Slurm"
    if PLACE.exists() and not PLACE.is_symlink():
        return f"{PLACE} is there: this machine belongs to a cluster"
    os.environ["PATH"] += os.pathsep + "/usr/sbin"
    if all(map(shutil.which, PROGRAMS)):
        return None
    if shutil.which("apt-get") is None:
        return "Slurm is not installed, and there is no apt-get to install it with"
    quiet = {"env": {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, "capture_output": True, "text": True}
    for line in (["apt-get", "-qq", "update"], ["apt-get", "-qq", "install", "--no-install-recommends", *PACKAGES]):
        if line[2] == "install":
            line.insert(2, "--yes")
        done = subprocess.run(line, check=False, **quiet)
        if done.returncode:
            return f"`{' '.join(line)}` failed: {(done.stderr or done.stdout).strip().splitlines()[-1:]}"
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    return f"the packages {' and '.join(PACKAGES)} brought no {', '.join(missing)}" if missing else None


class Cluster:
    """The daemons, whose files are all in `folder`; slurmd can be killed and started again."""

    def __init__(self, folder: Path):
        self.folder = folder.resolve()

    def up(self) -> None:
        """Start munged, slurmctld and slurmd and wait until the node takes jobs."""
        for name in ("state", "spool"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20
        facts = {"host": socket.gethostname().partition(".")[0], "folder": self.folder, "ports": _free_ports()}
        text = CONFIGURATION.format(**facts, cores=os.cpu_count(), memory=memory * 9 // 10)
        for name, default in zip(PARTITIONS, ("YES", "NO"), strict=True):
            text += f"PartitionName={name} Nodes=ALL Default={default} MaxTime=INFINITE State=UP\n"
        (self.folder / "slurm.conf").write_text(text, encoding="utf-8")
        PLACE.parent.mkdir(exist_ok=True)
        PLACE.unlink(missing_ok=True)
        PLACE.symlink_to(self.folder / "slurm.conf")
        self._start_munged()
        self._run("slurmctld")
        self._run("slurmd")
        _wait(lambda: self.node() in ("IDLE", "MIXED", "ALLOCATED"), "the node takes no jobs", self.folder)

    def down(self) -> None:
        """Cancel what runs and end the daemons that `up` has started."""
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            self.ask("scancel", "--user=root")
            _wait(lambda: not self.jobs(), "jobs do not end", self.folder)
        for name in ("slurmd", "slurmctld", "munged"):
            self.kill(name)
        if PLACE.is_symlink():
            PLACE.unlink()

    def kill(self, daemon: str) -> None:
        """End a daemon, and wait until it is gone."""
        file = self.folder / f"{daemon}.pid"
        with contextlib.suppress(FileNotFoundError, ValueError, ProcessLookupError):
            process = int(file.read_text(encoding="ascii"))
            os.kill(process, signal.SIGTERM)
            _wait(lambda: not _runs(process), f"{daemon} does not end", self.folder)
            file.unlink(missing_ok=True)

    def kill_node(self) -> None:
        """What the loss of a node ends: slurmd and those that watch over its jobs, without a word to anybody."""
        slurmd = int((self.folder / "slurmd.pid").read_text(encoding="ascii"))
        watching = [
            int(entry.name) for entry in Path("/proc").glob("[0-9]*") if name_of(int(entry.name)) == "slurmstepd"
        ]
        for process in (slurmd, *watching):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        _wait(lambda: not any(map(_runs, (slurmd, *watching))), "slurmd does not end", self.folder)

    def restart_slurmd(self) -> None:
        self._run("slurmd")

    def ask(self, *line: str) -> str:
        """Output of a Slurm command."""
        return subprocess.run(line, check=True, capture_output=True, text=True, timeout=60).stdout.strip()

    def node(self) -> str:
        """State of the node, such as IDLE; empty where the controller does not answer yet."""
        try:
            return self.ask("sinfo", "--noheader", "--Node", "--format=%T").splitlines()[0].upper().rstrip("*")
        except (subprocess.SubprocessError, IndexError):
            return ""

    def jobs(self, state: str = "PENDING,RUNNING,COMPLETING") -> dict[str, str]:
        """Jobs in these states: number to comment, which names the rule."""
        lines = self.ask("squeue", "--noheader", f"--states={state}", "--format=%i %k").splitlines()
        return dict(line.split(maxsplit=1) for line in lines)

    def _run(self, daemon: str) -> None:
        subprocess.run([daemon], check=True)

    def _start_munged(self) -> None:
        """Unless one runs: the libraries look for it at the packages' place only."""
        if subprocess.run(["sh", "-c", "munge -n | unmunge"], capture_output=True, check=False).returncode == 0:
            return
        key, run = Path("/etc/munge/munge.key"), Path("/run/munge")
        if not key.exists():
            key.write_bytes(os.urandom(1024))
            shutil.chown(key, "munge", "munge")
            key.chmod(0o400)
        for place in (run, Path("/var/log/munge"), Path("/var/lib/munge")):
            place.mkdir(parents=True, exist_ok=True)
            shutil.chown(place, "munge", "munge")
        subprocess.run(["runuser", "-u", "munge", "--", "munged", "--force"], check=True)
        _wait((run / "munged.pid").exists, "munged does not start", self.folder)
        shutil.copy(run / "munged.pid", self.folder / "munged.pid")


def name_of(process: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/comm").read_text(encoding="utf-8").strip()
    return ""


def _free_ports() -> list[int]:
    sockets = [socket.socket() for _ in range(2)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _runs(process: int) -> bool:
    """Whether it is there and no zombie, which stays where nobody collects it."""
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _wait(done: Callable[[], object], complaint: str, folder: Path, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            logs = [path for path in sorted(folder.glob("*.log")) if path.is_file()]
            tails = [f"{path.name}:\n{path.read_text(encoding='utf-8', errors='replace')[-2000:]}" for path in logs]
            raise TimeoutError("\n".join([complaint, *tails]))
        time.sleep(0.3)
