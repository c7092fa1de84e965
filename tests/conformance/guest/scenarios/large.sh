#: large transfers, direct and buffered, with 255 scatter entries and with one
#: targets lio lunar
#: limit 300
# What blktests' srp/005 to srp/010 look at.
. /guest/initiator.sh

target_start
for entries in 255 1; do
	login cmd_sg_entries=$entries
	disk
	for direct in 1 0; do
		for size in 4m 8m; do
			verified "of $size with cmd_sg_entries=$entries direct=$direct" --filename="$disk" \
				--rw=write --bs=$size --size=16m --iodepth=2 --direct=$direct
		done
	done
	logout
done
target_stop
