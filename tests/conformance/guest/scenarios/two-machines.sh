#: card and host are two machines: rings and data by RDMA, control by TLS; agent killed, wire cut, wrong certificates refused
#: targets lunar
#: machines 2
#: limit 400
. /guest/initiator.sh

# This machine is initiator and card, the second one host: agent, keeper and the image. What they have in common is a
# wire. The second machine gets the words of target-lunar.sh with what differs there.
host_address=192.168.99.2
control=$host_address:5558
target_size=$((64 << 20))

# on_host COMMAND...: as on_second, for this target and with the agent at its address.
on_host() {
	on_second "target_name=$target_name control=$control agent_options='--tls $run/keys/agent'; $*"
}

host_is_serving() {
	on_host is_serving
}

logged() {
	grep -q "$2" "/out/$1.log"
}

# wire_is_cut SECONDS: frames of both machines get lost. The wire is two sockets beside the guests' reports, each taking
# what the other machine sends. An interface that is down would not do: it answers, with errors.
wire_is_cut() {
	mv /out/wire-1 /out/cut-1 && mv /out/wire-2 /out/cut-2 || fail "the wire cannot be cut"
	sleep "$1"
	mv /out/cut-1 /out/wire-1 && mv /out/cut-2 /out/wire-2 || fail "the wire cannot be mended"
}

# firmware_with DIRECTORY NAME PORT: one more card in this machine, with these keys.
firmware_with() {
	NO_COLOR=1 $run/bin/lunar-firmware --hca rxe0 --listen "$address:$3" --control "$control" --tls "$1" \
		--card-memory-mib 4 --slots 256 --channels 4 >"/out/$2.log" 2>&1 &
	firmware=$!
}

[ -x /out/bin/lunar-firmware ] || skip "$(cat /out/lunar-missing)"
mkdir -p $run
cp -r /out/bin $run/bin

check "the machines reach each other" ping -c 1 -W 20 $host_address
check "the host makes keys" on_host "mkdir -p $run $image && cp -r /out/bin $run/bin && $run/bin/lunar keys $run/keys"
# As an administrator carries them from machine to machine.
on_host "cp -r $run/keys/card /out/second/card"
mkdir $run/keys
cp -r /out/second/card $run/keys/card
check_not "the card does without the host's own keys" test -e $run/keys/agent
firmware_options="--tls $run/keys/card"

check_not "an address without keys is refused" $run/bin/lunar-firmware --hca rxe0 --control $control 2>/run/refused
check "the way out is told" grep -q 'make some on the host with `lunar keys' /run/refused

on_host "target_image 0 $target_size; configuration; keeper_start; agent_start"
firmware_start
wait_for 60 "the card has taken the configuration" host_is_serving
check_not "no control socket of this machine is used" test -e $run/control.sock

login
disk
file_system
head -c $((4 << 20)) /dev/urandom >/run/original
check "copy" cp /run/original /mnt/copy
verified "of 4 KiB" --filename=/mnt/4k --rw=randwrite --bs=4k --size=1m --iodepth=8
verified "of 128 KiB" --filename=/mnt/128k --rw=write --bs=128k --size=4m --iodepth=4

load_in_turns
check "the agent is killed" \
	on_host "agent_kill; wait_for 30 gone process_is_gone \$(cat $run/lunar-agent.pid)"
sleep 2
on_host agent_start
still_loaded
wait_for 60 "card and agent have met again" host_is_serving

# Longer than the agent waits for a sign of life, and than RDMA tries; and shorter than RDMA tries. What was on its way is
# repeated: fio finds every block as it wrote it.
for seconds in 4 1; do
	wire_is_cut $seconds
	wait_for 60 "card and agent have met over the wire that was cut for $seconds s" host_is_serving
	still_loaded
done
load_is_enough

# A card with the keys of other people, which does believe this host: so it is its own certificate that is judged.
$run/bin/lunar keys $run/others >/dev/null || fail "no other keys"
cat $run/keys/card/ca.pem >>$run/others/card/ca.pem
firmware_with $run/others/card lunar-firmware-other 5560
other=$firmware
wait_for 30 "the host says who signed the wrong certificate" \
	logged lunar-agent "the card at $address:[0-9]* was refused: its certificate is signed by .Lunar CA"
wait_for 30 "the card is told what is wrong with it" \
	logged lunar-firmware-other 'the agent refuses the certificate of this card: it does not take those that .Lunar CA'
# And one that believes its own people only.
$run/bin/lunar keys $run/strange >/dev/null || fail "no strange keys"
firmware_with $run/strange/card lunar-firmware-strange 5561
wait_for 30 "a card says what is wrong with the host" \
	logged lunar-firmware-strange 'no host agent yet: its certificate is signed by .Lunar CA'
wait_for 30 "the host is told what a card thinks of it" \
	logged lunar-agent 'the card refuses the certificate of this agent'
check "lunar show counts them" on_host "$run/bin/lunar --api $run/api.sock show | grep 'Refused at the control channel: '"
verified "beside those that are refused again and again" --filename=/mnt/beside --rw=randwrite --bs=4k --size=1m --iodepth=8
kill $firmware $other
check "the card in use has not noticed" host_is_serving

file_system_is_clean
logout
on_host "$run/bin/lunar --api $run/api.sock show counters" >/run/counters
check "every buffer lay on the card" grep -q card_dram /run/counters
check_not "none lay on the host" grep -q host_dram /run/counters
measure "HostDram: not over plain verbs (docs/decisions/0007)"

# The image, in the host's memory, holds what the initiator wrote.
written=$(sha256sum </run/original)
found=$(on_host "modprobe -a loop ext4 && mount -t ext4 -o loop,ro $image/disk0 /mnt && sha256sum </mnt/copy; umount /mnt")
check "the host finds in its image what the initiator copied: $written" test "$found" = "$written"

ended lunar-firmware
check "agent and keeper end" on_host "ended lunar-agent; ended lunar-arena"
rm -rf $run
