#: buffers that are not registered: a descriptor for every piece, in the IU and in tables outside it
#: targets lunar
#: limit 300
# Not against LIO: Linux 6.1's ib_srpt dies of it.
. /guest/initiator.sh

# pieces OPTIONS PARAMETERS...: logs in with OPTIONS and ib_srp's PARAMETERS, and transfers.
pieces() {
	options=$1
	shift
	wait_for 20 "ib_srp unloads" without_module ib_srp
	check "ib_srp loads with $*" modprobe ib_srp "$@"
	login "$options"
	disk
	for size in 512 1024 4096; do
		check "pieces of $size bytes" discontiguous-io "$disk" $size 120
	done
	verified "with $options" --filename="$disk" --rw=randwrite --bs=512k --size=8m --iodepth=4
	logout
}

target_start
pieces cmd_sg_entries=255 never_register=1
pieces cmd_sg_entries=1,allow_ext_sg=1,sg_tablesize=128 never_register=1 indirect_sg_entries=255
wait_for 20 "ib_srp unloads" without_module ib_srp
target_stop
