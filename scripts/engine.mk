# Builds Sources/TorchShim/*.cpp into libgraft_torch.so, which CTorch loads on first use.
# One folder a LibTorch, so that going back to an earlier one rebuilds nothing.
SHELL := /bin/bash
MAKEFLAGS += --no-builtin-rules
.DELETE_ON_ERROR:

HOME_FOLDER := $(realpath .graft/libtorch/current)
ifeq ($(HOME_FOLDER),)
$(error LibTorch is not set up: run 'make setup')
endif
# A LibTorch of the set-up's own has its version as its name; any other gets its path's checksum added.
ID := $(notdir $(HOME_FOLDER))
ifneq ($(realpath .graft/libtorch),$(realpath $(dir $(HOME_FOLDER))))
ID := $(ID)-$(firstword $(shell printf '%s' '$(HOME_FOLDER)' | cksum))
endif
BUILD := .build-engine/$(ID)
LIBRARY := $(BUILD)/libgraft_torch.so

CXX := $(shell scripts/find-cxx.sh)
CXXFLAGS := -std=c++20 -O2 -fopenmp-simd -g1 -fPIC -Wall -Wextra -D_GLIBCXX_USE_CXX11_ABI=1 $(EXTRA_CXXFLAGS)
INCLUDES := -ISources/CTorch/include -ISources/TorchShim \
    -isystem $(HOME_FOLDER)/include -isystem $(HOME_FOLDER)/include/torch/csrc/api/include
# LibTorch's own OpenMP, under whichever name this wheel gives it, so that kernels share its threads.
OPENMP := $(firstword $(wildcard $(HOME_FOLDER)/lib/libgomp*.so* $(HOME_FOLDER)/../torch.libs/libgomp*.so*))
LDFLAGS := -shared -Wl,-z,defs -Wl,--enable-new-dtags -Wl,-rpath,'$$ORIGIN' -Wl,-rpath,$(HOME_FOLDER)/lib
LIBRARIES := -L$(HOME_FOLDER)/lib -ltorch_cpu -lc10 $(OPENMP) -ldl -lpthread

SOURCES := $(sort $(shell find Sources/TorchShim -name '*.cpp'))
OBJECTS := $(SOURCES:Sources/TorchShim/%.cpp=$(BUILD)/%.o)
# The headers of LibTorch are left out of the dependency files; this one changes with its version.
TORCH_VERSION := $(HOME_FOLDER)/include/torch/csrc/api/include/torch/version.h

.PHONY: all path
all: $(LIBRARY)
	@echo "Engine for LibTorch $(ID): ready"

path:
	@echo $(LIBRARY)

$(LIBRARY): $(OBJECTS) $(BUILD)/flags
	@echo "  linking $(@F)"
	@$(CXX) $(LDFLAGS) $(OBJECTS) $(LIBRARIES) -o $@.new && mv $@.new $@

$(BUILD)/%.o: Sources/TorchShim/%.cpp $(BUILD)/flags $(TORCH_VERSION)
	@mkdir -p $(@D)
	@echo "  compiling $(<F)"
	@$(CXX) $(CXXFLAGS) $(INCLUDES) -MMD -MP -MF $(@:.o=.d) -MT $@ -c $< -o $@.$$$$ && mv $@.$$$$ $@

# Changes only when the compiler, a flag or the list of files does.
FLAGS_NOW := $(CXX) $(CXXFLAGS) $(INCLUDES) $(LIBRARIES) $(SOURCES)
$(BUILD)/flags: .FORCE
	@mkdir -p $(@D)
	@echo '$(FLAGS_NOW)' | cmp -s - $@ || echo '$(FLAGS_NOW)' > $@

.PHONY: .FORCE
.FORCE:

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
