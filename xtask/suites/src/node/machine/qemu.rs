//! Arguments of QEMU for a machine: processor, disks, network, and the kernel's command line.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use super::{Init, Machine, Options};
use crate::node::architecture;
use testbed::sandbox::CONTROL_IP;

impl Machine {
    pub(super) fn command(&self) -> Command {
        let architecture = self.kernel.architecture;
        let [first, second, third, fourth] = self.options.address.octets();
        let mac = format!("52:54:{first:02x}:{second:02x}:{third:02x}:{fourth:02x}");
        let mut command = self
            .sandbox
            .control()
            .command(architecture::qemu(architecture));
        command
            .args(self.accelerator.arguments(architecture))
            .args(["-machine", architecture::machine(architecture)])
            .args(["-smp", &self.options.processors.to_string()])
            .args(["-m", &self.options.memory_mib.to_string()])
            .args(["-nodefaults", "-display", "none", "-no-reboot"])
            .args(["-serial", "stdio", "-monitor", "none"])
            .args(["-device", "virtio-rng-pci"])
            .arg("-kernel")
            .arg(self.kernel.image())
            .arg("-initrd")
            .arg(self.kernel.initramfs())
            .arg("-append")
            .arg(self.kernel_arguments())
            .args(drive(&self.overlay, "qcow2", ",cache=unsafe"))
            .args(drive(&self.kernel.modules(), "raw", ",readonly=on"));
        if let Some(disk) = &self.options.disk {
            command.args(drive(disk, "raw", ",readonly=on"));
        }
        command
            .arg("-netdev")
            .arg(format!(
                "tap,id=net,ifname={},script=no,downscript=no",
                self.tap()
            ))
            .arg("-device")
            .arg(format!("virtio-net-pci,netdev=net,mac={mac},romfile="));
        command
    }

    fn kernel_arguments(&self) -> String {
        let Options {
            name,
            address,
            init,
            kernel_arguments,
            ..
        } = &self.options;
        let init = match init {
            Init::Systemd => "/lib/systemd/systemd",
            Init::Bare => "/usr/local/sbin/kiam-init",
        };
        let mut words = vec![
            format!(
                "console={}",
                architecture::console(self.kernel.architecture)
            ),
            "rw net.ifnames=0 panic=-1 audit=0 nowatchdog random.trust_cpu=on loglevel=5".into(),
            format!("init={init} systemd.hostname={name} kiam.name={name}"),
            format!("kiam.address={address}/16,{CONTROL_IP}"),
        ];
        words.extend(kernel_arguments.iter().cloned());
        // Scripts look for words between spaces.
        words.join(" ") + " "
    }
}

fn drive(path: &Path, format: &str, more: &str) -> [OsString; 2] {
    let mut drive = OsString::from("file=");
    // A comma ends QEMU's values, two are one.
    drive.push(path.to_string_lossy().replace(',', ",,"));
    // A full disk is the machine's to notice: it would be paused.
    drive.push(format!(
        ",format={format},if=virtio,werror=report,rerror=report{more}"
    ));
    ["-drive".into(), drive]
}
