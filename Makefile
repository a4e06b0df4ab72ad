# The front door. `make demo` and `make test` set up everything they need on a bare Debian 12 machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SETUP := $(VENV)/.setup
KERNEL := src/eastwest/kernel

PACKAGES := clang llvm gcc libc6-dev libbpf-dev libelf-dev libpcap-dev zlib1g-dev bpftool python3-venv python3-dev \
            iproute2 ethtool util-linux procps openvswitch-switch libvirt-dev pkg-config
VM_PACKAGES := qemu-system-x86 busybox-static cpio
# Collectors that read what is exported.
COLLECTORS := nfdump pmacct tshark
# Sources of workloads that the tests run for real.
TEST_PACKAGES := netbase podman runc netavark conmon iptables libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients $(VM_PACKAGES) $(COLLECTORS)

# Peers that the bench runs beside eastwest.
BENCH_PACKAGES := tcpdump softflowd pmacct argus-server argus-client netsniff-ng wireshark-common netcat-openbsd

.PHONY: demo test fuzz test-kernel-6.1 crash bench soak lint setup lock wheel clean

demo: setup
	$(BIN)/eastwest demo

test: setup lint $(VENV)/.test-packages
	$(BIN)/pytest

# The kernel tests on Debian 12's own kernel (6.1: no TCX, no namespace cookie), in QEMU without KVM; there all is
# some twenty times slower, so those that repeat a thing most are left out. LEAVE_OUT=words: others as well.
test-kernel-6.1: setup
	$(call install,netbase $(VM_PACKAGES))
	$(BIN)/python -m tests.vm.run $(VENV)/vm tests/kernel -k '"not 10000 and not million $(addprefix and not ,$(LEAVE_OUT))"'

# Roles killed at random moments under traffic, twenty seeds (`make test` runs two).
crash: setup
	EASTWEST_SEEDS=20 $(BIN)/pytest tests/system/test_crashes.py

# What `make test` asks API, settings and the reader of streams for some seconds, for as long as it takes.
fuzz: setup $(VENV)/.test-packages
	EASTWEST_FUZZ_EXAMPLES=$(or $(EXAMPLES),1000) $(BIN)/pytest -s tests/system/test_fuzz_api.py tests/unit/test_config_fuzz.py
	EASTWEST_FUZZ_STREAMS=$(or $(STREAMS),1000000) $(BIN)/pytest -s tests/unit/test_fuzz_blocks.py tests/system/test_fuzz_streams.py

# The price list; BENCH="packets wire" asks these questions only. On a quiet machine about half an hour.
bench: setup $(VENV)/.bench
	$(BIN)/python -m bench $(BENCH)

# Churn for SOAK_MINUTES (30): fails where something does not level off or a total is not exact.
soak: setup
	$(BIN)/python -m bench.soak

$(VENV)/.bench: Makefile $(SETUP)
	$(call install,$(BENCH_PACKAGES))
	$(PYTHON) -m venv $(VENV)/bench
	VIRTUAL_ENV=$(VENV)/bench $(BIN)/uv pip install --quiet nfstream
	@touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: $(VENV)/.packages $(SETUP) $(KERNEL)/.built

# Installs those of $(1) that are missing; RUNLEVEL=1 keeps Debian from starting the services they bring.
define install
@missing=$$(dpkg-query -W -f='$${Package} $${Status}\n' $(1) 2>/dev/null | awk '/ok installed$$/ {print $$1}' | sort >$(VENV)/.have; \
  printf '%s\n' $(1) | sort | comm -23 - $(VENV)/.have | tr '\n' ' '); \
if [ -n "$$missing" ]; then \
  if [ "$$(id -u)" != 0 ]; then echo "missing Debian packages: $$missing; run as root: apt-get install $$missing" >&2; exit 1; fi; \
  apt-get update -qq && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $$missing; \
fi
endef

$(VENV)/.test-packages: Makefile $(SETUP)
	$(call install,$(TEST_PACKAGES))
	@touch $@

$(VENV)/.packages: Makefile
	@mkdir -p $(VENV)
	$(call install,$(PACKAGES))
	@touch $@

$(SETUP): requirements-dev.lock pyproject.toml $(VENV)/.packages
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip sync --quiet --compile-bytecode --require-hashes requirements-dev.lock
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --no-deps --no-build-isolation --editable .
	$(BIN)/python -m compileall -q src/eastwest # else each start compiles, where PYTHONDONTWRITEBYTECODE is set
	@touch $@

$(KERNEL)/.built: $(SETUP) setup.py $(wildcard $(KERNEL)/_*_build.py) $(wildcard $(KERNEL)/*.bpf.c $(KERNEL)/include/*.h tests/*/*.bpf.c)
	$(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@

# What is published: libbpf and libelf inside, so that installing it needs neither compiler nor packages.
wheel: setup
	rm -rf dist build
	$(BIN)/python -m build --wheel --no-isolation --outdir build/wheel >build.log 2>&1 || { cat build.log; exit 1; }
	PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/auditwheel repair --wheel-dir dist build/wheel/*.whl >build.log 2>&1 || { cat build.log; exit 1; }
	rm -rf build build.log
	@ls dist/*.whl

clean:
	rm -rf $(VENV) build dist $(KERNEL)/.built $(KERNEL)/*.o $(KERNEL)/*.so

lock: setup
	$(BIN)/uv pip compile --quiet pyproject.toml --extra server --extra libvirt --group dev --generate-hashes --no-emit-index-url --no-header --python-version 3.11 -o requirements-dev.lock
