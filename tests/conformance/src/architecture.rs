//! What differs between guests of different processors, as a table. Nothing else may name a processor.

/// One kind of guest.
pub struct Architecture {
    /// Debian's name, as in package files.
    pub debian: &'static str,
    /// The directory of its libraries, below lib and usr/lib.
    pub triplet: &'static str,
    /// The package that depends on the newest kernel.
    pub kernel: &'static str,
    /// QEMU for it, and the Debian package that brings it.
    pub qemu: (&'static str, &'static str),
    /// QEMU's arguments for the machine and its processor.
    pub machine: &'static [&'static str],
    /// The kernel's arguments for them.
    pub kernel_arguments: &'static str,
    /// The guest's serial lines: what the kernel and the scenarios print; results.
    pub lines: (&'static str, &'static str),
    /// How many processors it has.
    pub processors: u32,
}

/// The usual server. There is no KVM: where it is offered it may never reach user space, and a result
/// must not depend on it.
pub const X86_64: Architecture = Architecture {
    debian: "amd64",
    triplet: "x86_64-linux-gnu",
    kernel: "linux-image-amd64",
    qemu: ("qemu-system-x86_64", "qemu-system-x86"),
    machine: &["-M", "q35", "-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max"],
    kernel_arguments: "mitigations=off nokaslr random.trust_cpu=on tsc=reliable",
    lines: ("ttyS0", "ttyS1"),
    processors: 2,
};

/// A logical partition of IBM's POWER hypervisor. The capabilities that are turned off are mitigations that the
/// emulation does not have. One processor: hypervisor calls are then made one at a time.
pub const POWERPC64LE: Architecture = Architecture {
    debian: "ppc64el",
    triplet: "powerpc64le-linux-gnu",
    kernel: "linux-image-powerpc64le",
    qemu: ("qemu-system-ppc64", "qemu-system-ppc"),
    machine: &[
        "-M",
        "pseries,accel=tcg,cap-cfpc=broken,cap-sbbc=broken,cap-ibs=broken,cap-ccf-assist=off,ic-mode=xive,x-vof=on,\
         memory-backend=ram",
        "-cpu",
        "power9",
    ],
    kernel_arguments: "nowatchdog nmi_watchdog=0",
    lines: ("hvc0", "hvc1"),
    processors: 1,
};
