# An image of a fleet's machines: what all of them have in common is in it, and cloud-init brings each its own part.
#
#   ssh-keygen -q -t ed25519 -N '' -f build-key
#   packer build -var source_image=debian-12-genericcloud-amd64.qcow2 -var source_checksum=sha512:… \
#     -var larder_deb=larder_amd64.deb -var ssh_key=build-key larder.pkr.hcl
#
# docs/first-boot.md says what happens when. Packer 1.7 and later: `packer init` this folder first.

variable "source_image" {
  type        = string
  description = "A Debian or Ubuntu image with cloud-init, as a file or an URL."
}

variable "source_checksum" {
  type        = string
  description = "The checksum of source_image, as sha256:… or sha512:…"
}

variable "larder_deb" {
  type        = string
  description = "The package of larder."
}

variable "ssh_key" {
  type        = string
  description = "A private key for the build, its public half beside it as .pub. The image lets neither in."
}

variable "fleet_profile" {
  type        = string
  default     = "fleet.yaml"
  description = "What all machines have in common: goes to /usr/lib/larder/profile.yaml, below each machine's own."
}

variable "packages" {
  type        = list(string)
  default     = []
  description = "What else to install, from the image's own sources. The build has a network only where there is any."
}

variable "output" {
  type        = string
  default     = "image"
  description = "The folder that the image larder.qcow2 goes to. It must not be there."
}

variable "accelerator" {
  type        = string
  default     = "kvm"
  description = "Where there is no /dev/kvm: tcg."
}

variable "qemuargs" {
  type        = list(list(string))
  default     = []
  description = "More arguments for qemu."
}

source "qemu" "image" {
  iso_url          = var.source_image
  iso_checksum     = var.source_checksum
  disk_image       = true
  disk_interface   = "virtio"
  net_device       = "virtio-net"
  format           = "qcow2"
  vm_name          = "larder.qcow2"
  output_directory = var.output
  skip_compaction  = true
  skip_resize_disk = true

  accelerator = var.accelerator
  headless    = true
  memory      = 1024
  # Packer's own forwards on every address of this host.
  qemuargs = concat([
    ["-netdev", join("", [
      "user,id=user.0,hostfwd=tcp:127.0.0.1:{{ .SSHHostPort }}-:22",
      length(var.packages) == 0 ? ",restrict=on" : "",
    ])],
  ], var.qemuargs)

  # The build machine's own NoCloud seed. It lets in the key that is on it.
  cd_label = "cidata"
  cd_files = ["${path.root}/seed/user-data", "${path.root}/seed/meta-data", "${var.ssh_key}.pub"]

  ssh_username         = "root"
  ssh_private_key_file = var.ssh_key
  ssh_timeout          = "15m"
  boot_wait            = "1s"
  shutdown_command     = "systemctl poweroff"
}

build {
  sources = ["source.qemu.image"]

  provisioner "file" {
    source      = var.larder_deb
    destination = "/var/tmp/larder.deb"
  }

  provisioner "file" {
    source      = var.fleet_profile
    destination = "/var/tmp/fleet.yaml"
  }

  # `--root /` although this machine runs: a machine that builds an image is not one of the fleet. Nothing is started,
  # asked or proven here, and no store filled; all that is in files and links is in the image.
  provisioner "shell" {
    environment_vars = ["DEBIAN_FRONTEND=noninteractive", "PACKAGES=${join(" ", var.packages)}"]
    inline = [
      "set -eux",
      # 2: it has finished, and has something to say.
      "cloud-init status --wait --long || [ $? = 2 ]",
      "[ -z \"$PACKAGES\" ] || apt-get update -qq",
      "apt-get install -qq --yes /var/tmp/larder.deb $PACKAGES",
      "install -D -m 0600 /var/tmp/fleet.yaml /usr/lib/larder/profile.yaml",
      "larder apply --root /",
      "larder plan --root /",
    ]
  }

  # Each machine of this image is one of its own. An empty machine-id: where there is none, or "uninitialized", a wizard
  # of systemd's asks on the console, and waits.
  provisioner "shell" {
    inline = [
      "set -eux",
      "apt-get clean",
      "rm -rf /var/tmp/* /tmp/* /root/.ssh /etc/ssh/ssh_host_*",
      "rm -f /etc/netplan/50-cloud-init.yaml /etc/network/interfaces.d/50-cloud-init /etc/systemd/network/10-cloud-init-*",
      "rm -f /etc/NetworkManager/system-connections/cloud-init-* /var/lib/dbus/machine-id",
      "cloud-init clean --logs",
      "journalctl --quiet --rotate --vacuum-time=1s || :",
      ": > /etc/machine-id",
      "sync",
    ]
  }
}
