#: buffers in many pieces: 255 scatter entries, without memory registration, tables outside the IU
#: targets lio lunar
#: limit 300
# What blktests' srp/013 looks at, and the three ways that ib_srp has to describe such a buffer.
. /guest/initiator.sh

# pieces OPTIONS PARAMETERS...: logs in with OPTIONS and ib_srp's PARAMETERS, and transfers.
pieces() {
	options=$1
	shift
	wait_for 20 "ib_srp unloads" without_module ib_srp
	check "ib_srp loads with ${*:-its defaults}" modprobe ib_srp "$@"
	login "$options"
	disk
	check "pieces of 512 bytes" discontiguous-io "$disk" 512 120
	check "pieces of 4 KiB" discontiguous-io "$disk" 4096 120
	verified "with $options" --filename="$disk" --rw=randwrite --bs=512k --size=8m --iodepth=4
	logout
}

target_start
modprobe ib_srp
pieces cmd_sg_entries=255
pieces cmd_sg_entries=255 never_register=1
pieces cmd_sg_entries=1,allow_ext_sg=1,sg_tablesize=128 never_register=1 indirect_sg_entries=255
wait_for 20 "ib_srp unloads" without_module ib_srp
target_stop
