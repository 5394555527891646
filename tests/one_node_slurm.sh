#!/usr/bin/env bash
# Runs a command beside a SLURM of one node, this machine, which ends with it:
#   tests/one_node_slurm.sh [--install] COMMAND [ARGUMENT ...]
# --install fetches Debian's packages where they are missing. Where SLURM is missing or does not start,
# the command runs alone.
# Nothing outside a scratch folder is written, and neither systemd nor cgroups are asked for.
set -euo pipefail

PATH="$PATH:/usr/sbin"
installed() { command -v munged && command -v slurmctld && command -v slurmd; } >/dev/null
if [ "${1:-}" = --install ]; then
    shift
    if ! installed; then
        export DEBIAN_FRONTEND=noninteractive
        { apt-get update && apt-get install -y --no-install-recommends slurm-wlm munge; } >/dev/null ||
            echo "slurm: the packages slurm-wlm and munge cannot be installed here" >&2
    fi
fi
if ! installed; then
    echo "slurm: not installed" >&2
    exec "$@"
fi

scratch=$(mktemp -d)
chmod 755 "$scratch"  # munge asks for it
daemons=()
stop() {
    scancel --user="$user" 2>/dev/null || true
    for _ in $(seq 50); do
        [ -n "$(squeue --noheader 2>/dev/null)" ] || break
        sleep 0.1
    done
    [ ${#daemons[@]} = 0 ] || kill "${daemons[@]}" 2>/dev/null || true
    wait
    rm -rf "$scratch"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

port=$((20000 + RANDOM % 20000))
host=$(hostname -s)
user=$(id -un)
cpus=$(nproc)
export ONE_NODE_SLURM=1 SLURM_CONF="$scratch/slurm.conf"
# A job is killed 2 seconds after it was told to end, and starts again once its credential has expired,
# in 5 seconds: with fewer SLURM takes its default of two minutes.
cat >"$SLURM_CONF" <<CONF
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmdPort=$((port + 1))
SlurmUser=$user
SlurmdUser=$user
AuthInfo=socket=$scratch/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation=$scratch/state
SlurmdSpoolDir=$scratch/spool
SlurmctldPidFile=$scratch/slurmctld.pid
SlurmdPidFile=$scratch/slurmd.pid
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerParameters=sched_interval=2,batch_sched_delay=0
KillWait=2
ReturnToService=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cpus State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
CONF
mkdir "$scratch/state" "$scratch/spool"
head -c 1024 /dev/urandom >"$scratch/munge.key"
chmod 400 "$scratch/munge.key"

start() {  # out of reach of a Ctrl-C, so that `stop` finds them
    setsid "$@" >>"$scratch/log" 2>&1 &
    daemons+=($!)
}
start munged --foreground --force --key-file "$scratch/munge.key" --socket "$scratch/munge.socket" \
    --pid-file "$scratch/munged.pid" --log-file "$scratch/munged.log" --seed-file "$scratch/seed"
for _ in $(seq 100); do
    [ -S "$scratch/munge.socket" ] && break
    sleep 0.1
done
start slurmctld -D
start slurmd -D
for _ in $(seq 100); do
    [ "$(sinfo --noheader --format %T 2>/dev/null)" = idle ] && break
    sleep 0.1
done
if [ "$(sinfo --noheader --format %T 2>&1)" != idle ]; then
    echo "slurm: the node did not come up, the command runs without:" >&2
    tail -n 20 "$scratch/log" >&2
    unset ONE_NODE_SLURM SLURM_CONF
fi
"$@"
