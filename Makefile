# make check    the inner loop: format, lints, unit and case tests
# make test     all of it: check, and the end-to-end scenarios on real machines (root, or sudo)
# make demo     a throwaway machine that is a cache and its own client, provisioned and shown
# make bench    measured against `true`, bash and Ansible
# make fuzz     ten minutes (FUZZ_SECONDS) of odd input to every reader of what others write
# make soak     that; ten minutes (SOAK_SECONDS) of pulls, collections, restarts and crashes, and one more containerd
# make packages build the .deb and the .rpm into target/packages; ARCH=arm64 for the other machine
# make images   build the machines' images now, side by side, rather than when a scenario wants one
# make deps     install what is missing; the targets above do it themselves
# make clean    remove what was built, images and tools of the tests included

export SOAK_SECONDS ?= 600
FUZZ_SECONDS ?= 600
export LARDER_CONTAINERDS ?= 2.4
export LARDER_CACHE ?= /var/cache/larder-dev
# Tools that `deps` builds are found, the machine's own first.
export PATH := $(PATH):$(LARDER_CACHE)/bin
TARGET := $(shell uname -m)-unknown-linux-musl
LARDER := target/$(TARGET)/release/larder
# The scenarios make network namespaces and mounts.
ROOT := $(if $(filter 0,$(shell id -u)),,sudo env PATH="$(PATH)" LARDER_CACHE="$(LARDER_CACHE)" SOAK_SECONDS="$(SOAK_SECONDS)" LARDER_CONTAINERDS="$(LARDER_CONTAINERDS)" LARDER_SOAK="$(LARDER_SOAK)")

.PHONY: check test e2e build packages images demo bench fuzz soak deps clean

check: deps
	cargo fmt --check
	cargo clippy --locked --all-targets --quiet -- -D warnings
	cargo test --locked --quiet
	python3 -m unittest discover --quiet --start-directory tests/bench
	python3 -m unittest discover --quiet --start-directory tests/e2e

test: check e2e

e2e: build
	@tests/e2e/packages.py $(LARDER) >/dev/null
	$(ROOT) tests/e2e/run --larder $(LARDER)

build: deps
	@packaging/compile $(TARGET) >/dev/null

packages: deps
	packaging/build --arch $(or $(ARCH),$(if $(filter aarch64,$(shell uname -m)),arm64,amd64))

images: deps
	@$(ROOT) sh -ec 'for suite in bookworm trixie forky; do tests/e2e/image $$suite & done; wait; \
	  for suite in bookworm trixie; do \
	    for flavour in networkd netplan networkmanager ifupdown; do tests/e2e/flavour $$suite $$flavour; done & done; \
	  tests/e2e/flavour forky networkd; tests/e2e/flavour trixie rpm; tests/e2e/disk bookworm; wait'

demo: build
	$(ROOT) tests/e2e/demo --larder $(LARDER)

bench: build
	tests/deps bench
	$(ROOT) tests/bench/run $(LARDER)

fuzz: deps
	tests/fuzz $(FUZZ_SECONDS)

# Whole: also with the containerd, and the boot that fails, that `test` leaves out for their time.
soak: export LARDER_CONTAINERDS = 2.3 2.4
soak: export LARDER_SOAK = 1
soak: build fuzz
	$(ROOT) tests/e2e/run --larder $(LARDER) soak fifty explain versions options migrate packer
	tests/deps arm64
	$(ROOT) tests/e2e/run --larder $(LARDER) --jobs 1 package-twice package-arm64
	tests/e2e/workload.py $(LARDER) --registry $${REGISTRY_2:-docker-registry}
	tests/e2e/workload.py $(LARDER) --registry $${REGISTRY_3:-registry}
	LARDER_FAULTS=all LARDER_FAULTS_BINARY=$(abspath $(LARDER)) cargo test --locked --quiet --test faults -- --nocapture

deps:
	@tests/deps

clean:
	rm -rf target
	$(ROOT) rm -rf --one-file-system $(LARDER_CACHE)/images $(LARDER_CACHE)/bin
