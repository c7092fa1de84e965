#: sg3-utils' tools: what each prints, and what those that write leave on the medium
#: targets lunar
#: limit 300
. /guest/initiator.sh

disk_attributes='thin_provisioned 1'
bytes=$target_size
last=$((bytes / 512 - 1))
r=/run/sg3

# blocks FIRST COUNT FILE: what is on the medium, past the page cache.
blocks() {
	dd if="$disk" of="$3" bs=512 skip="$1" count="$2" iflag=direct 2>/dev/null || fail "block $1 cannot be read"
}

# holds WHAT FIRST COUNT FILE: the blocks from FIRST are what is in the file.
holds() {
	blocks "$2" "$3" $r/read
	check "$1" cmp $r/read "$4"
}

# filled: 64 blocks, each unlike its neighbours, from block 0, and what is in them in $r/pattern.
filled() {
	check "a pattern is written" dd if=$r/pattern of="$disk" bs=32k count=1 oflag=direct
}

mkdir -p $r
target_start
login
disk
dd if=/dev/urandom of=$r/pattern bs=32k count=1 2>/dev/null
dd if=$r/pattern of=$r/one bs=512 count=1 2>/dev/null
dd if=/dev/zero of=$r/zeroes bs=32k count=1 2>/dev/null

# What it is.
says "sg_inq: a disk that is there" 'PQual=0.*PDT=0' sg_inq "$generic"
says "sg_luns: LUN 0" '0000000000000000' sg_luns "$generic"
says "sg_readcap: the last block" "Last LBA=$last " sg_readcap "$generic"
says "sg_readcap --long: the last block" "Last LBA=$last " sg_readcap --long "$generic"
says "sg_readcap --long: thin" 'lbpme=1' sg_readcap --long "$generic"
sg_vpd --raw --page=sv "$generic" >$r/pages || fail "sg_vpd lists no pages"
check "sg_vpd lists nine pages" [ "$(stat -c %s $r/pages)" = 13 ]
for page in $(od -A n -t x1 -v -j 4 $r/pages); do
	says "sg_vpd: page 0x$page" '.' sg_vpd --page=0x$page "$generic"
done
says "sg_vpd: an identifier of the logical unit" 'designator type: NAA' sg_vpd --page=di "$generic"
says "sg_vpd: UNMAP is bounded" 'Maximum unmap LBA count: *[1-9-]' sg_vpd --page=bl "$generic"
says "sg_vpd: UNMAP is offered" 'LBPU\): 1' sg_vpd --page=lbpv "$generic"
for page in 'Read-Write error recovery' 'Disconnect-Reconnect' Caching 'Control,' 'Informational exceptions'; do
	says "sg_modes: $page" ">> $page" sg_modes --all "$generic"
done
says "sg_modes: WCE" '^ 00     08 12 04' sg_modes --page=8 "$generic"
for name in 'Read\(16\)' 'Compare and write' 'Extended copy' 'Get LBA status' 'Unmap' 'Write same\(16\)'; do
	says "sg_opcodes: $name" "$name" sg_opcodes "$generic"
done
says "sg_opcodes: one command, and its CDB" '88 .*ff ff ff ff ff ff ff ff' sg_opcodes --opcode=0x88 "$generic"
says "sg_opcodes --tmf" 'Abort task' sg_opcodes --tmf "$generic"
says "sg_logs: the pages" '0x2f' sg_logs "$generic"
says "sg_logs: no exception" 'IE asc = 0x0, ascq = 0x0' sg_logs --page=0x2f "$generic"
# ALUA is offered with a device group, and there is none.
if sg_inq "$generic" | grep -q 'TPGS=0'; then
	ends 9 "sg_rtpg: not offered, and so refused" sg_rtpg "$generic"
else
	says "sg_rtpg: the target port group" 'target port group asymmetric' sg_rtpg "$generic"
fi
check "sg_turs" sg_turs "$generic"
check "sg_requests" sg_requests "$generic"

# VERIFY.
filled
check "sg_verify: the medium is readable" sg_verify --lba=0 --count=64 "$generic"
check "sg_verify --16" sg_verify --16 --lba=0 --count=64 "$generic"
check "sg_verify: what is there" sg_verify --in=$r/pattern --ndo=32768 --lba=0 --count=64 "$generic"
ends 14 "sg_verify: what is not there" sg_verify --in=$r/zeroes --ndo=32768 --lba=0 --count=64 "$generic"

# WRITE SAME.
check "sg_write_same --10" sg_write_same --10 --in=$r/one --lba=8 --num=8 "$generic"
for block in 8 15; do holds "each block is that one" $block 1 $r/one; done
dd if=$r/pattern of=$r/part bs=512 skip=16 count=48 2>/dev/null
holds "and none behind them" 16 48 $r/part
check "sg_verify --ebytchk=3: each block is that one" \
	sg_verify --ebytchk=3 --in=$r/one --ndo=512 --lba=8 --count=8 "$generic"
ends 14 "sg_verify --ebytchk=3: one is not" \
	sg_verify --ebytchk=3 --in=$r/one --ndo=512 --lba=8 --count=9 "$generic"
filled
check "sg_write_same --16 --ndob" sg_write_same --16 --ndob --lba=0 --num=64 "$generic"
holds "zeroes" 0 64 $r/zeroes

# UNMAP and GET LBA STATUS: pages of the file system that the image is on.
filled
says "sg_get_lba_status: mapped" ' mapped' sg_get_lba_status --lba=0 "$generic"
check "sg_unmap" sg_unmap --force --lba=0 --num=64 "$generic"
holds "zeroes" 0 64 $r/zeroes
says "sg_get_lba_status: not mapped" deallocated sg_get_lba_status --lba=0 "$generic"
filled
check "sg_write_same --unmap" sg_write_same --16 --unmap --in=$r/zeroes --xferlen=512 --lba=0 --num=64 "$generic"
holds "zeroes" 0 64 $r/zeroes
says "sg_get_lba_status: not mapped" deallocated sg_get_lba_status --lba=0 "$generic"

# COMPARE AND WRITE.
filled
check "sg_compare_and_write: what is there is replaced" sg_compare_and_write \
	--in=$r/one --inw=$r/zeroes --lba=0 --num=1 --xferlen=1024 "$generic"
dd if=$r/zeroes of=$r/zero bs=512 count=1 2>/dev/null
holds "by the other" 0 1 $r/zero
ends 14 "sg_compare_and_write: MISCOMPARE" sg_compare_and_write \
	--in=$r/one --inw=$r/one --lba=0 --num=1 --xferlen=1024 "$generic"
holds "and nothing is written" 0 1 $r/zero

# EXTENDED COPY.
filled
check "sg_xcopy" sg_xcopy if="$generic" of="$generic" skip=0 seek=4096 count=64 bs=512 iflag=xcopy
holds "the copy is what was copied" 4096 64 $r/pattern
holds "and what was copied is still there" 0 64 $r/pattern

check "sg_reset" sg_reset --device "$generic"
check "then it is there" sg_turs --number=2 "$generic"
holds "with its data" 0 64 $r/pattern
logout
target_stop
