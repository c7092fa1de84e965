# Lunar as the target under test: keeper, agent and the card's firmware as three processes of this guest.
# The card reaches the keeper's memory over RDMA, as it does from a machine of its own. What a target offers is told in target-lio.sh; this one's processes
# can be killed and started one by one besides.

service=$address:5556
target_size=$((96 << 20))
target_logins=200
target_leaves='pd cq qp cm_id mr srq'
# The port id is the GUID of the target's name, twice.
target_name=fe80:0000:0000:0000:$(cat /sys/class/infiniband/rxe0/node_guid)
ioc_guid=$(echo "${target_name#fe80:0000:0000:0000:}" | tr -d :)
id_ext=$ioc_guid
run=/run/lunar
image=/tmp/lunar
# Where card and agent meet, and what else each is told on its command line.
control=$run/control.sock
agent_options=
firmware_options=
enabled=1
luns=
nulls=
# What a scenario wants card and keeper to be told besides.
firmware_options=
keeper_options=
# Of every disk that has an image: lines for scst.conf.
disk_attributes=
cds=
# Names of further targets that export the same, and what is told of device groups.
other_targets=
device_groups=

target_start() {
	[ -x /out/bin/lunar-firmware ] || skip "$(cat /out/lunar-missing)"
	mkdir -p $run $image
	rm -f $image/*
	# From memory they start at once, however large they are.
	cp -r /out/bin $run/bin
	PATH=$run/bin:$PATH
	target_image 0 $target_size
	configuration
	keeper_start
	agent_start
	firmware_start
	wait_for 60 "the card has taken the configuration" is_serving
}

target_image() {
	luns="$luns $1"
	truncate -s "$2" $image/disk$1
}

# Writes scst.conf from $enabled, $luns, $nulls, $disk_attributes and $cds, whose discs are in $image/disc<LUN>.
configuration() {
	{
		echo 'HANDLER vdisk_fileio {'
		for lun in $luns; do
			echo "	DEVICE disk$lun {"
			echo "		filename $image/disk$lun"
			[ -z "$disk_attributes" ] || echo "		$disk_attributes"
			echo '	}'
		done
		echo '}'
		echo 'HANDLER vdisk_nullio {'
		for lun in $nulls; do
			echo "	DEVICE disk$lun {"
			echo "		size_mb $((target_size >> 20))"
			echo '		lunar_backend card'
			echo '	}'
		done
		echo '}'
		echo 'HANDLER vdisk_cdrom {'
		for lun in $cds; do
			echo "	DEVICE disk$lun {"
			echo "		filename $image/disc$lun"
			echo '	}'
		done
		echo '}'
		echo 'TARGET_DRIVER ib_srpt {'
		for name in $target_name $other_targets; do
			echo "	TARGET $name {"
			for lun in $luns $nulls $cds; do
				echo "		LUN $lun disk$lun"
			done
			echo "		enabled $enabled"
			echo '	}'
		done
		echo '}'
		echo "$device_groups"
	} >$run/scst.conf
}

# started NAME ARGUMENTS...: in the background; its log can be read on the host.
started() {
	name=$1
	shift
	RUST_BACKTRACE=1 NO_COLOR=1 "$run/bin/$name" "$@" >>"/out/$name.log" 2>&1 &
	echo $! >"$run/$name.pid"
}

killed() {
	kill -9 "$(cat "$run/$1.pid")" || fail "$1 was not there to be killed"
	wait "$(cat "$run/$1.pid")" 2>/dev/null
}

# ended NAME: asks it to end, and waits until it has.
ended() {
	kill "$(cat "$run/$1.pid")" || fail "$1 had ended by itself"
	wait_for 30 "$1 ends when asked to" process_is_gone "$(cat "$run/$1.pid")"
}

process_is_gone() {
	! kill -0 "$1" 2>/dev/null
}

keeper_start() {
	started lunar-arena --socket $run/keeper.sock --arena-bytes $((64 << 20)) \
		--rdma rxe0 --rdma-listen $address:5557 $keeper_options
}

agent_start() {
	started lunar-agent --config $run/scst.conf --keeper $run/keeper.sock --control "$control" \
		--api $run/api.sock --pr-dir $run/pr $agent_options
}

agent_kill() {
	killed lunar-agent
}

firmware_start() {
	started lunar-firmware --hca rxe0 --listen $service --control "$control" $firmware_options
}

firmware_kill() {
	killed lunar-firmware
}

# killed_under_load KILL START SECONDS: a process is killed and started again under load, twice, and the initiator has
# SECONDS to go on; needs initiator.sh.
killed_under_load() {
	target_start
	login
	disk
	file_system
	load_in_turns
	for round in 1 2; do
		still_loaded
		$1
		sleep 2
		$2
		sleep $3
	done
	load_is_enough
	file_system_is_clean
	logout
	target_stop
}

# shown FIELD: of what the agent says of the card.
shown() {
	$run/bin/lunar --api $run/api.sock show --json | tr ',{}' '\n' |
		sed -n "s/.*\"$1\": *\"\{0,1\}\([0-9]*\).*/\1/p" | head -n 1
}

is_serving() {
	$run/bin/lunar --api $run/api.sock show --json | grep -q '"connected": *true' || return 1
	applied=$(shown applied_generation)
	[ "${applied:-0}" != 0 ] && [ "$applied" = "$(shown configuration_generation)" ]
}

# The agent reads its configuration when it starts; the card takes the difference.
reconfigured() {
	configuration
	ended lunar-agent
	agent_start
	wait_for 60 "the card has taken the configuration" is_serving
}

target_enable() {
	enabled=1
	reconfigured
}

target_disable() {
	enabled=0
	reconfigured
}

target_add_lun() {
	target_image "$1" $((4 << 20))
	reconfigured
}

target_add_null() {
	nulls="$nulls $1"
	reconfigured
}

# target_add_cd LUN: a CD/DVD drive with the disc in $image/disc<LUN>.
target_add_cd() {
	cds="$cds $1"
	reconfigured
}

# target_medium LUN [FILE]: puts another disc in, or takes it out; fails where that is refused.
target_medium() {
	$run/bin/lunar --api $run/api.sock medium "disk$1" $2
}

# target_alua ARGUMENTS...: `lunar alua`.
target_alua() {
	$run/bin/lunar --api $run/api.sock alua "$@"
}

target_remove_lun() {
	luns=$(echo " $luns " | sed "s/ $1 / /")
	reconfigured
}

# The firmware may have ended with its device, or serve it again by itself.
target_device_is_back() {
	if process_is_gone "$(cat $run/lunar-firmware.pid)"; then
		firmware_start
	fi
	wait_for 60 "the card serves again" is_serving
}

target_says_port() {
	grep -q "an RDMA port is $1" /out/lunar-firmware.log
}

target_memory() {
	for name in lunar-firmware lunar-agent lunar-arena; do
		cat "/proc/$(cat $run/$name.pid)/status"
	done | awk '/^VmRSS/ { sum += $2 } END { print sum }'
}

target_stop() {
	for name in lunar-firmware lunar-agent lunar-arena; do
		ended $name
	done
	rm -rf $run $image
}
