#: LUNs are added and taken away: the initiator sees what there is
#: targets lio lunar
#: limit 180
# What blktests' srp/001 looks at.
. /guest/initiator.sh

lacks_disk() {
	! has_disk "$1" "$2"
}

target_start
target_add_lun 1
login
disk "$host" 0
disk "$host" 1
check "LUN 1 can be read" dd if="$disk" of=/dev/null bs=1M count=1 iflag=direct
logout
target_remove_lun 1
login
disk "$host" 0
check "LUN 1 is gone" lacks_disk "$host" 1
logout
target_stop
