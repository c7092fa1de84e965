# Measures Lunar against LIO: both serve the same initiator in the same guest, and take turns job by job, so
# that whatever the machine around the guest does happens to both. $rounds says how many turns each has.
#
# A figure is called TARGET/BACKSTORE/JOB/FIGURE. Where to stop is decided by time, never by a figure.
. /guest/initiator.sh

# Counted are the middle seconds of those that fio runs, so that neither its start nor its end is in them.
warm=1
counted=3
turns=0

# logged_in TARGET: leaves the devices of its LUNs in /run/TARGET.BACKSTORE. In a shell of its own, because
# targets use the same words. Both have the node's GUID, so their sessions have names of their own.
logged_in() {
	(
		. "/guest/target-$1.sh"
		target_size=$((64 << 20))
		target_start
		target_add_null 1
		login "initiator_ext=$2"
		disk "$host" 0
		echo "$disk" >"/run/$1.ram"
		# A disk that was never written to has no pages yet.
		check "the RAM of $1 is written" fio --name=fill --eta=never --thread --ioengine=libaio --direct=1 \
			--filename="$disk" --rw=write --bs=128k --iodepth=8 --output=/run/fio
		disk "$host" 1
		echo "$disk" >"/run/$1.null"
	) || exit 1
}

# busy_ticks: of both processors, in hundredths of a second, into $busy; idle and waiting for I/O are not.
busy_ticks() {
	read -r _ user nice system _ _ irq softirq _ </proc/stat
	busy=$((user + nice + system + irq + softirq))
}

# own_ticks: what Lunar's processes used, into $own: what soft RoCE does in their system calls is in it, what
# it does in interrupts and in the kernel's own threads is not.
own_ticks() {
	own=0
	for pid in /run/lunar/*.pid; do
		read -r pid <"$pid"
		read -r _ _ _ _ _ _ _ _ _ _ _ _ _ user system _ <"/proc/$pid/stat"
		own=$((own + user + system))
	done
}

# sectors: those of 512 bytes that were read and written, into $sectors. Requests may be split and merged.
sectors() {
	read -r _ _ read _ _ _ written _ <"/sys/block/${1#/dev/}/stat"
	sectors=$((read + written))
}

# job NAME BLOCK_BYTES OPTIONS...: on $disk, against $target, to its $store.
job() {
	of=$target/$store/$1
	block=$2
	shift 2
	fio --name=job --eta=never --thread --ioengine=libaio --direct=1 --filename="$disk" --bs="$block" \
		--time_based --ramp_time=$warm --runtime=$counted --output-format=terse --terse-version=3 \
		--output=/run/fio "$@" &
	fio=$!
	sectors "$disk"
	untouched=$sectors
	while [ "$sectors" = "$untouched" ] && kill -0 $fio 2>/dev/null; do
		usleep 100000
		sectors "$disk"
	done
	sleep $warm
	busy_ticks && own_ticks && sectors "$disk"
	before="$busy $own $sectors"
	sleep $((counted - 1))
	busy_ticks && own_ticks && sectors "$disk"
	check "fio still runs" kill -0 $fio
	check "$of without an error" wait $fio
	set -- $before
	count=$(((sectors - $3) * 512 / block))
	[ $count -gt 0 ] || fail "$of: nothing was read or written"
	# The second half of a terse line tells of writes as the first does of reads.
	awk -F ';' '{
		at = $6 > 0 ? 6 : 47
		print $(at + 1), $(at + 2)
		for (i = at; i < at + 41; i++) {
			if (sub(/^(50|99)\.0+%=/, "", $i)) print $i
		}
	}' /run/fio | {
		read -r bandwidth rate
		read -r median
		read -r slow
		if [ "$block" -gt 4096 ]; then
			measure "$of/rate" "$bandwidth" KiB/s
		else
			measure "$of/rate" "$rate" IO/s
		fi
		measure "$of/latency_p50" "$median" us
		measure "$of/latency_p99" "$slow" us
	}
	measure "$of/machine_cpu" $(((busy - $1) * 10000 / count)) us/IO
	[ "$target" != lunar ] || measure "$of/own_cpu" $(((own - $2) * 10000 / count)) us/IO
}

# Each job of each backstore against one target after the other, and who begins changes with every turn.
turn() {
	name=$1
	shift
	for target in $order; do
		disk=$(cat "/run/$target.$store")
		job "$name" "$@"
	done
}

logged_in lio 0000000000000001
logged_in lunar 0000000000000002

# What the machine does when nobody asks anything of either.
busy_ticks
before=$busy
sleep $counted
busy_ticks
measure both/idle/nothing/machine_cpu $(((busy - before) * 10000 / counted)) us/s

while [ $turns -lt "$rounds" ]; do
	turns=$((turns + 1))
	if [ $((turns % 2)) = 1 ]; then order='lio lunar'; else order='lunar lio'; fi
	for store in null ram; do
		turn randread-4k-1 4096 --rw=randread --iodepth=1
		turn randread-4k-32 4096 --rw=randread --iodepth=32
		turn randwrite-4k-1 4096 --rw=randwrite --iodepth=1
		turn randwrite-4k-32 4096 --rw=randwrite --iodepth=32
		turn read-128k-8 131072 --rw=read --iodepth=8
		turn write-128k-8 131072 --rw=write --iodepth=8
	done
done
