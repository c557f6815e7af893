#!/bin/busybox sh
# The tests, run inside the guest by its /init. Results go to descriptor 3, a line each; what
# programs print goes to the console:
#
#   VM ok NAME | VM FAIL NAME: why | VM skip NAME: why | VM note TEXT (for whoever reads along)
#
# VM_ALL=1: what else runs on one file system runs on all.

say() { echo "VM $*" >&3; }
note() { say note "$(cut -d' ' -f1 /proc/uptime): $*"; }
ok() { say ok "$1"; }

# fail NAME WHY: tell, with the last words of whoever may know more.
fail() {
	say FAIL "$1: $2"
	local log
	for log in /tmp/*.log; do
		[ -s "$log" ] && tail -n 5 "$log" | while read -r line; do note "${log##*/}: $line"; done
	done
}

# until_true SECONDS COMMAND...: run it every 0.2 s until it succeeds; fails when time is up.
until_true() {
	local end=$(($(cut -d. -f1 /proc/uptime) + $1))
	shift
	until "$@" >/dev/null 2>&1; do
		[ "$(cut -d. -f1 /proc/uptime)" -lt $end ] || return 1
		sleep 0.2
	done
}

# end PID: ask it to stop; its exit code, 137 if it had to be killed.
end() {
	[ -n "$1" ] || return 0
	local killer
	kill "$1" 2>/dev/null
	(sleep 15 && kill -9 "$1") 2>/dev/null &
	killer=$!
	wait "$1"
	set -- $?
	kill $killer 2>/dev/null
	return "$1"
}

# sql FILE SQL: a fresh connection of the stock command line, which must not hang.
sql() { timeout 30 sqlite3 -cmd '.timeout 5000' "$@"; }

# application FILE STOP: one stock sqlite3 that inserts the next number until STOP exists, in bursts
# with pauses, some of them long enough for walwire to go to sleep. A dense counter makes a prefix
# visible: it holds as many rows as its highest number.
application() { statements "$2" | sqlite3 "$1"; }
statements() {
	local pause
	echo '.timeout 5000'
	while :; do
		for pause in 0.2 0.2 0.2 1.5; do
			[ -e "$1" ] && return
			for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
				echo "INSERT INTO t VALUES((SELECT coalesce(max(n),0)+1 FROM t), hex(randomblob(200)));"
			done
			sleep $pause
		done
	done
}

rows() { sql "$1" 'SELECT count(*) FROM t'; }
more_rows_than() { [ "$(rows "$1")" -gt "$2" ]; }

mount_all() {
	mkdir -p /mnt/ext4 /mnt/xfs /mnt/btrfs /mnt/tmpfs /mnt/overlayfs
	mount -t ext4 /dev/vda /mnt/ext4
	mount -t xfs /dev/vdb /mnt/xfs
	mount -t btrfs /dev/vdc /mnt/btrfs
	mount -t tmpfs none /mnt/tmpfs
	local layers=/mnt/ext4/layers
	mkdir -p $layers/lower $layers/upper $layers/work
	mount -t overlay none /mnt/overlayfs \
		-o lowerdir=$layers/lower,upperdir=$layers/upper,workdir=$layers/work
}

# This kernel is one that people run: BTF, and every file system there with SQLite working on it.
test_boot() {
	note "$(uname -r)"
	[ -s /sys/kernel/btf/vmlinux ] || { fail boot "no /sys/kernel/btf/vmlinux"; return; }
	local fs
	for fs in $filesystems; do
		grep -q " /mnt/$fs " /proc/mounts || { fail boot "$fs was not mounted"; return; }
		sql /mnt/$fs/try.db 'PRAGMA journal_mode=WAL; CREATE TABLE t(n)' | grep -q wal &&
			sql /mnt/$fs/try.db 'INSERT INTO t VALUES(1)' &&
			[ "$(rows /mnt/$fs/try.db)" = 1 ] || { fail boot "no WAL on $fs"; return; }
	done
	ok boot
}

# unit PROGRAM FS: a unit test on that file system. What it says of its parts is passed on, but for
# "ok".
unit() {
	local name=$1_$2 log=/tmp/$1_$2.log code verdict
	mkdir -p /mnt/$2/unit
	TMPDIR=/mnt/$2/unit timeout 60 $1 >$log 2>&1
	code=$?
	cat $log
	[ $code = 0 ] && ok $name
	[ $code = 77 ] && say skip "$name: $(tail -n 1 $log)"
	sed -n -E "s/^(FAIL|skip) ([a-z])/\1 ${name}_\2/p" $log |
		while read -r verdict; do say "$verdict"; done
	case $code in
	0 | 77) ;;
	*) grep -q '^FAIL' $log || fail $name "exit code $code" ;;
	esac
	rm -rf $log /mnt/$2/unit
}

# The tap, where tracing programs are allowed. It takes half a minute under emulation, so in an
# everyday run on one file system: one whose function is in a module.
test_tap() {
	[ -x /bin/test_tap ] || { say skip "test_tap: it is not built"; return; }
	local fs
	for fs in $([ -n "$VM_ALL" ] && echo $filesystems || echo xfs); do
		unit test_tap $fs
	done
}

status() { timeout 10 walwire status --json --state-dir $p; }
woken() { status | grep -q '"tap_wakeups": *[1-9]'; }

# The tap: chosen as it should be on this file system ($2 stands in its description), and its hooks
# fire.
check_tap() {
	local tap
	tap=$(status | sed -n 's/.*"tap": *"\([^"]*\)".*/\1/p' | head -n 1)
	note "$1: $tap"
	case $tap in
	*posix_lock_inode*) ;;
	*) fail "$1_tap" "no lock hook: '$tap'"; return ;;
	esac
	case $tap in
	*"$2"*) ;;
	*) fail "$1_tap" "no '$2': '$tap'"; return ;;
	esac
	until_true 15 woken || { fail "$1_tap" "no hook ever fired"; return; }
	ok "$1_tap"
}

alive() { kill -0 $primary && kill -0 $replica; }
ready_or_dead() {
	timeout 10 walwire wait --state-dir $r --level applied --timeout 1 || ! alive
}

# While the application writes, every state of the replica is a prefix, and states go on; when it
# stops, all of it arrives.
check_follows() {
	local before now
	until_true 60 ready_or_dead ||
		{ fail "$1_follows" "the replica was not ready in 60 s"; return 1; }
	alive || { fail "$1_follows" "walwire ended at once"; return 1; }
	until_true 20 more_rows_than $copy 0 ||
		{ fail "$1_follows" "the replica shows no rows"; return 1; }
	before=$(rows $copy)
	for _ in 1 2 3 4 5; do
		now=$(sql $copy "SELECT count(*) || ' rows up to ' || max(n) FROM t")
		[ "${now%% *}" = "${now##* }" ] ||
			{ fail "$1_follows" "the replica holds '$now'"; return 1; }
		sleep 0.3
	done
	until_true 20 more_rows_than $copy $((before + 40)) ||
		{ fail "$1_follows" "the replica stood still at $(rows $copy) rows"; return 1; }
}

# All of it arrived, and both are one database: the same contents and, checkpointed, the same bytes.
check_equal() {
	sql $db .dump >/tmp/p.dump && sql $copy .dump >/tmp/r.dump ||
		{ fail "$1_equal" "cannot dump"; return; }
	cmp -s /tmp/p.dump /tmp/r.dump ||
		{ fail "$1_equal" "contents differ: $(rows $db) and $(rows $copy) rows"; return; }
	[ "$(sql $copy 'PRAGMA integrity_check')" = ok ] || { fail "$1_equal" "integrity_check"; return; }
	end $primary || { fail "$1_equal" "the primary ended with $? on SIGTERM"; return; }
	primary=
	end $replica || { fail "$1_equal" "the replica ended with $? on SIGTERM"; return; }
	replica=
	sql $db 'PRAGMA wal_checkpoint(TRUNCATE)' && sql $copy 'PRAGMA wal_checkpoint(TRUNCATE)' &&
		cmp $db $copy >/tmp/cmp.log 2>&1 || { fail "$1_equal" "checkpointed files differ"; return; }
	ok "$1_equal"
}

# replicate FS PORT TAP: end to end on one file system.
replicate() {
	local db=/mnt/$1/app.db copy=/mnt/$1/replica/app.db p=/tmp/p_$1 r=/tmp/r_$1 stop=/tmp/stop_$1
	local primary='' replica='' writer=''
	mkdir -p $p $r /mnt/$1/replica
	sql $db 'PRAGMA journal_mode=WAL; CREATE TABLE t(n INTEGER PRIMARY KEY, filler);'
	application $db $stop >/tmp/application.log 2>&1 &
	writer=$!
	walwire primary $db --listen 127.0.0.1:$2 --state-dir $p >/tmp/primary.log 2>&1 &
	primary=$!
	walwire replica 127.0.0.1:$2 /mnt/$1/replica --state-dir $r >/tmp/replica.log 2>&1 &
	replica=$!

	if check_follows $1; then
		check_tap $1 "$3"
		touch $stop
		wait $writer
		writer=
		if timeout 30 walwire wait --state-dir $p --level applied --timeout 20; then
			ok $1_follows
			check_equal $1
		else
			fail $1_follows "20 s after the last commit the replica has not applied it"
		fi
	fi
	touch $stop
	end "$writer"
	end "$primary"
	end "$replica"
	cat /tmp/primary.log /tmp/replica.log /tmp/application.log
	rm -rf /tmp/*.log /tmp/*.dump $p $r
}

# The kernel had nothing to complain about while our programs were attached.
test_kernel() {
	dmesg | grep -E 'WARNING:|BUG:|Oops|general protection|blocked for more' >/tmp/kernel.log
	[ -s /tmp/kernel.log ] && { fail kernel "it complained: $(head -n 1 /tmp/kernel.log)"; return; }
	ok kernel
}

filesystems="ext4 xfs btrfs tmpfs overlayfs"
mount_all
test_boot
test_tap
if [ -x /bin/walwire ]; then
	# One after the other: walwire polls, and the emulator has one thread for both CPUs.
	replicate ext4 7001 'fexit ext4_'
	replicate xfs 7002 'fexit xfs_'
	replicate btrfs 7003 'fexit btrfs_'
	replicate tmpfs 7004 fexit # its function has another name in each few kernels
	replicate overlayfs 7005 ''
else
	for fs in $filesystems; do
		say skip "$fs: walwire is not built"
	done
fi
test_kernel
