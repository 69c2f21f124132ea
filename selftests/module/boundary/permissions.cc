// SPDX-License-Identifier: GPL-2.0-only
// What users without privileges can do who were given the node, and what they cannot:
// the promises of the page on the trust boundary, one by one.

#include "support/alloc.h"
#include "support/fixture.h"
#include "support/system.h"

#include <linux/capability.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <format>
#include <fstream>
#include <functional>
#include <grp.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

namespace selftest {
namespace {

using std::chrono::seconds;

constexpr uid_t nobody = 65534;
constexpr uint64_t allowance = 32; // pages

// Give up root, with all groups and capabilities. The limit of locked memory is small.
bool become_nobody() {
    const rlimit limit = {allowance * page_size(), allowance * page_size()};

    return setrlimit(RLIMIT_MEMLOCK, &limit) == 0 && setgroups(0, nullptr) == 0 &&
           setresgid(nobody, nobody, nobody) == 0 && setresuid(nobody, nobody, nobody) == 0;
}

// Who does it.
enum class Who : uint8_t {
    opener,  // nobody, who was given the node and opens it
    handed,  // nobody, who was handed a session that root has opened
    ns_root, // nobody, with all capabilities in a user namespace of its own
};

// One deed: 0 or errno.
struct Deed {
    const char* name;
    std::function<int()> act;
    int expected;
};

// The deeds that did not come out as they must, one in a line.
std::string outcomes(const std::vector<Deed>& deeds) {
    std::string wrong;

    for (const Deed& deed : deeds) {
        const int err = deed.act();

        if (err != deed.expected)
            wrong +=
                std::format("{}: {}, not {}\n", deed.name, err ? strerrorname_np(err) : "success",
                            deed.expected ? strerrorname_np(deed.expected) : "success");
    }
    return wrong;
}

class Permissions : public DeviceTest {
protected:
    void SetUp() override {
        DeviceTest::SetUp();
        if (IsSkipped() || HasFatalFailure())
            return;
        if (geteuid() != 0)
            GTEST_SKIP() << "only root can become somebody else";
        page = page_size();
        // Also of a domain that passes addresses through.
        translated = s.domain().type == DMAPROBE_DOMAIN_NONE ? EOPNOTSUPP : 0;
        ASSERT_EQ(stat(node_path(bdf).c_str(), &node), 0);
    }

    void TearDown() override {
        if (node.st_mode) {
            EXPECT_EQ(chown(node_path(bdf).c_str(), node.st_uid, node.st_gid), 0);
            EXPECT_EQ(chmod(node_path(bdf).c_str(), node.st_mode & 07777), 0);
        }
    }

    void give_node() const {
        ASSERT_EQ(chown(node_path(bdf).c_str(), nobody, nobody), 0);
        ASSERT_EQ(chmod(node_path(bdf).c_str(), 0600), 0);
    }

    // What @act reports in a child that has become somebody else: nothing when all is well.
    // "skip: ..." is a reason to skip.
    std::string in_child(const std::function<bool()>& become,
                         const std::function<std::string()>& act) const {
        std::array<int, 2> ends{};

        if (pipe(ends.data()))
            return "no pipe";
        const pid_t child = fork();
        if (child == 0) {
            std::string text = become() ? act() : "could not become somebody else";

            text += '.';
            _exit(write(ends[1], text.data(), text.size()) < 0);
        }
        close(ends[1]);
        const Fd out(ends[0]);
        std::string text;
        std::array<char, 4096> piece{};
        ssize_t n = 0;
        while ((n = read(out.get(), piece.data(), piece.size())) > 0)
            text.append(piece.data(), static_cast<size_t>(n));
        int status = -1;
        if (child < 0 || !wait_for_child(child, seconds(60), status) || status)
            return text + std::format("the child ended with status {:#x}", status);
        if (!text.ends_with('.'))
            return text + "the child was cut short";
        text.pop_back();
        return text;
    }

    // A session as @who has it, and the deeds of that.
    std::string as(Who who, const std::function<std::vector<Deed>(Raw&)>& deeds) {
        return in_child(
            [&] {
                if (!become_nobody())
                    return false;
                return who != Who::ns_root || unshare(CLONE_NEWUSER) == 0 || (skip = true);
            },
            [&]() -> std::string {
                if (skip)
                    return "skip: no user namespaces here";
                if (who == Who::handed)
                    return outcomes(deeds(s));
                Raw own = Raw::open(bdf);
                if (!own)
                    return std::format("open: {}", strerrorname_np(own.error()));
                return outcomes(deeds(own));
            });
    }

    uint64_t page = 0;
    int translated = 0; // what DMAPROBE_TRANSLATE answers here
    struct stat node = {};
    bool skip = false; // in the child
};

// A parameter of the module, put back at the end.
class Parameter {
public:
    Parameter(const char* name, const std::string& value)
        : path_(std::string("/sys/module/dmaprobe/parameters/") + name), had_(read_text(path_)) {
        EXPECT_OK(write_text(path_, value));
    }
    Parameter(const Parameter&) = delete;
    Parameter& operator=(const Parameter&) = delete;
    ~Parameter() { EXPECT_OK(write_text(path_, had_)); }

private:
    std::string path_;
    std::string had_;
};

constexpr uint64_t mask_of(unsigned bits) {
    return (uint64_t{1} << bits) - 1;
}

#define EXPECT_NOTHING_WRONG(expr)                                                                 \
    do {                                                                                           \
        const std::string wrong = (expr);                                                          \
        if (wrong.starts_with("skip: "))                                                           \
            GTEST_SKIP() << wrong.substr(6);                                                       \
        EXPECT_EQ(wrong, "");                                                                      \
    } while (0)

// --- without the node -------------------------------------------------------------

TEST_F(Permissions, NodeIsRootsAlone) {
    EXPECT_TRUE(S_ISCHR(node.st_mode));
    EXPECT_EQ(node.st_mode & 07777u, 0600u);
    EXPECT_EQ(node.st_uid, 0u);
    EXPECT_EQ(node.st_gid, 0u);
}

int try_open(const std::string& path, int flags) {
    const Fd fd(open(path.c_str(), flags | O_CLOEXEC));

    return fd ? 0 : errno;
}

TEST_F(Permissions, WithoutTheNode) {
    EXPECT_NOTHING_WRONG(in_child(become_nobody, [&] {
        return outcomes({
            {"open", [&] { return try_open(node_path(bdf), O_RDWR); }, EACCES},
            {"open to read", [&] { return try_open(node_path(bdf), O_RDONLY); }, EACCES},
            {"open to write", [&] { return try_open(node_path(bdf), O_WRONLY); }, EACCES},
            {"chmod", [&] { return chmod(node_path(bdf).c_str(), 0666) ? errno : 0; }, EPERM},
        });
    }));
}

// --- with it ----------------------------------------------------------------------

class PermissionsOf : public Permissions, public testing::WithParamInterface<Who> {
protected:
    void SetUp() override {
        Permissions::SetUp();
        if (!IsSkipped() && !HasFatalFailure())
            give_node();
    }
};

INSTANTIATE_TEST_SUITE_P(Everybody, PermissionsOf,
                         testing::Values(Who::opener, Who::handed, Who::ns_root),
                         [](const auto& who) {
                             return who.param == Who::opener   ? "Opener"
                                    : who.param == Who::handed ? "Handed"
                                                               : "NamespaceRoot";
                         });

// Capabilities count in the first user namespace alone, and in no other.
TEST_P(PermissionsOf, PhysicalAddressesAndPools) {
    EXPECT_NOTHING_WRONG(as(GetParam(), [&](Raw& mine) -> std::vector<Deed> {
        auto a = std::make_shared<Allocation>();
        auto table = [&mine, a](uint32_t flags) {
            std::vector<dmaprobe_sgtable_entry> pieces;
            const int err = sgtable(mine, a->id, pieces, flags);

            for (const dmaprobe_sgtable_entry& piece : pieces)
                if (!(flags & DMAPROBE_SGTABLE_PHYS) && piece.phys)
                    return EPROTO;
            return err;
        };
        auto translate = [&mine, a, this](uint32_t flags) {
            dmaprobe_extent extent = {};
            dmaprobe_translate op = {};

            op.flags = flags;
            op.iova = a->dma_addr;
            op.length = page;
            op.nr_extents = 1;
            op.extents = reinterpret_cast<uintptr_t>(&extent);
            const int err = mine(op);
            return err == 0 && extent.phys ? EPROTO : err;
        };
        auto pool = [&mine] {
            dmaprobe_pool_create op = {};

            op.block_size = 64;
            return mine(op);
        };

        return {
            {"alloc", [&mine, a, this] { return allocate(mine, *a, alloc_ways[0], page); }, 0},
            {"sgtable", [table] { return table(0); }, 0},
            {"physical sgtable", [table] { return table(DMAPROBE_SGTABLE_PHYS); }, EPERM},
            {"translate", [translate] { return translate(0); }, translated},
            {"physical translate", [translate] { return translate(DMAPROBE_TRANSLATE_PHYS); },
             EPERM},
            {"pool", pool, EPERM},
        };
    }));
}

// Of buffers, pins and allocations together, in all sessions that the user opened.
// A session that root opened is charged to nobody.
TEST_P(PermissionsOf, LockedMemory) {
    const bool free_of_charge = GetParam() == Who::handed;
    const int beyond = free_of_charge ? 0 : ENOMEM;

    EXPECT_NOTHING_WRONG(as(GetParam(), [&](Raw& mine) -> std::vector<Deed> {
        auto b = std::make_shared<std::array<Buffer, 4>>();
        auto a = std::make_shared<Allocation>();
        auto own = std::make_shared<Memory>(Memory::fenced(allowance * page));
        auto other = std::make_shared<Raw>(Raw::open(bdf));
        const auto limit = [](uint64_t pages) {
            const rlimit more = {pages * page_size(), pages * page_size()};

            return setrlimit(RLIMIT_MEMLOCK, &more) ? errno : 0;
        };

        return {
            {"a buffer of all but 13 pages",
             [&mine, b, this] { return mine.alloc((*b)[0], (allowance - 13) * page); }, 0},
            {"8 pinned pages",
             [&mine, b, own, this] { return mine.pin((*b)[1], own->data(), 8 * page); }, 0},
            {"4 allocated ones",
             [&mine, a, this] { return allocate(mine, *a, alloc_ways[0], 4 * page); }, 0},
            {"2 more", [&mine, b, this] { return mine.alloc((*b)[2], 2 * page); }, beyond},
            {"2 more to pin",
             [&mine, b, own, this] { return mine.pin((*b)[2], own->data(), 2 * page); }, beyond},
            // A second session is the user's own in each case.
            {"2 in another session", [other, b, this] { return other->alloc((*b)[3], 2 * page); },
             beyond},
            {"the last one there", [other, b, this] { return other->alloc((*b)[3], page); }, 0},
            {"and one more",
             [other, b, this] {
                 Buffer none;
                 return other->alloc(none, page);
             },
             beyond},
            {"a higher limit", [limit] { return limit(allowance + 1); }, EPERM},
            {"free", [&mine, b] { return mine.free((*b)[1]); }, 0},
            {"8 pages instead", [other, b, this] { return other->alloc((*b)[2], 8 * page); }, 0},
        };
    }));
}

std::string map_named(const char* name) {
    std::ifstream in("/proc/self/maps");
    std::string line;

    while (std::getline(in, line))
        if (line.ends_with(name))
            return line.substr(0, line.find('-'));
    return {};
}

// A file of root's that others may read, and what is mapped of it.
TEST_P(PermissionsOf, MemoryThatMayNotBeWritten) {
    const std::string path = "/dev/shm/dmaprobe-permissions";
    const Fd file(open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));

    ASSERT_TRUE(file);
    ASSERT_EQ(ftruncate(file.get(), static_cast<off_t>(4 * page)), 0);
    ASSERT_EQ(pwrite(file.get(), "root's", 6, 0), 6);
    EXPECT_NOTHING_WRONG(as(GetParam(), [&](Raw& mine) -> std::vector<Deed> {
        std::vector<Deed> deeds;
        const auto map_file = [](const char* name, int prot, int flags) {
            const Fd fd(open(name, O_RDONLY | O_CLOEXEC));
            const auto length = 2 * page_size();
            void* at = mmap(nullptr, length, prot, flags, fd.get(), 0);

            return at == MAP_FAILED ? nullptr : std::make_shared<Memory>(at, length);
        };
        const auto add = [&deeds, &mine, this](const char* name, uint64_t address,
                                               const std::shared_ptr<Memory>& held, int reading) {
            auto b = std::make_shared<Buffer>();
            auto pin = [&mine, b, address, held, this](uint32_t flags) {
                // NOLINTNEXTLINE(performance-no-int-to-ptr): an address from /proc
                return mine.pin(*b, reinterpret_cast<void*>(address), page, flags);
            };
            auto map = [&mine, b, this](uint32_t dir) {
                dmaprobe_map op = {};

                op.kind = DMAPROBE_MAP_KIND_PAGE;
                op.dir = dir;
                op.buffer_id = b->id;
                op.length = page;
                const int err = mine(op);
                if (!err)
                    mine.unmap(op.id);
                return err;
            };

            deeds.push_back({name, [pin] { return pin(0); }, EFAULT});
            deeds.push_back({name, [pin] { return pin(DMAPROBE_BUFFER_PIN_READ_ONLY); }, reading});
            if (reading)
                return;
            for (const uint32_t dir : {DMAPROBE_DIR_BIDIRECTIONAL, DMAPROBE_DIR_FROM_DEVICE})
                deeds.push_back({name, [map, dir] { return map(dir); }, EACCES});
            deeds.push_back({name,
                             [&mine, b] {
                                 std::array<std::byte, 8> bytes{};
                                 return mine.copy(b->id, DMAPROBE_COPY_WRITE, 0, bytes);
                             },
                             EOPNOTSUPP});
        };

        const auto shared = map_file("/dev/shm/dmaprobe-permissions", PROT_READ, MAP_SHARED);
        const auto copy = map_file("/dev/shm/dmaprobe-permissions", PROT_READ, MAP_PRIVATE);
        const auto zero = map_file("/dev/zero", PROT_READ, MAP_PRIVATE);
        if (!shared || !copy || !zero)
            return {{"mmap", [] { return errno; }, 0}};
        deeds.push_back({"mprotect",
                         [shared] { return shared->protect(PROT_READ | PROT_WRITE) ? 0 : errno; },
                         EACCES});
        add("a shared file", shared->address(), shared, 0);
        add("a private file", copy->address(), copy, 0);
        add("/dev/zero", zero->address(), zero, 0);
        // The kernel's, in each program. Whether it can be pinned to be read is the kernel's
        // to say, and has changed.
        if (const std::string at = map_named("[vvar]"); !at.empty())
            deeds.push_back({"vvar",
                             [&mine, at, this] {
                                 Buffer b;
                                 return mine.pin(
                                     // NOLINTNEXTLINE(performance-no-int-to-ptr): from /proc
                                     b, reinterpret_cast<void*>(std::stoull(at, nullptr, 16)),
                                     page);
                             },
                             EFAULT});
        add("the kernel's half", 0xffff888000000000, nullptr, EFAULT);
        add("the vsyscall page", 0xffffffffff600000, nullptr, EFAULT);
        return deeds;
    }));
    std::array<char, 6> bytes{};
    EXPECT_EQ(pread(file.get(), bytes.data(), bytes.size(), 0), 6);
    EXPECT_EQ(std::string(bytes.data(), bytes.size()), "root's");
    unlink(path.c_str());
}

int try_write(const std::string& path, const char* text) {
    return write_text(path, text);
}

// The node is not the device's registers, and not the driver.
TEST_P(PermissionsOf, NothingBeyondTheNode) {
    std::string vfio;
    std::error_code none;
    for (const auto& entry : std::filesystem::directory_iterator(pci_path(bdf) + "/vfio-dev", none))
        vfio = "/dev/vfio/devices/" + entry.path().filename().string();

    EXPECT_NOTHING_WRONG(as(GetParam(), [&](Raw&) -> std::vector<Deed> {
        const std::string dir = pci_path(bdf);
        std::vector<Deed> deeds = {
            {"unbind", [dir, this] { return try_write(dir + "/driver/unbind", bdf.c_str()); },
             EACCES},
            {"driver_override", [dir] { return try_write(dir + "/driver_override", "x"); }, EACCES},
            {"BAR", [dir] { return try_open(dir + "/resource0", O_RDWR); }, EACCES},
            {"config space", [dir] { return try_open(dir + "/config", O_WRONLY); }, EACCES},
            {"remove", [dir] { return try_write(dir + "/remove", "1"); }, EACCES},
            {"module", [] { return remove_module(driver_name); }, EPERM},
        };
        if (exists(dir + "/reset"))
            deeds.push_back({"reset", [dir] { return try_write(dir + "/reset", "1"); }, EACCES});
        for (const char* name : {"session_max_mib", "device_max_mib", "unprivileged_mask_bits",
                                 "device_max_addresses", "allow_unsafe_interrupts"}) {
            const std::string parameter = std::string("/sys/module/dmaprobe/parameters/") + name;

            if (exists(parameter))
                deeds.push_back({name, [=] { return try_write(parameter, "1"); }, EACCES});
        }
        if (!vfio.empty() && exists(vfio))
            deeds.push_back({"VFIO's node", [=] { return try_open(vfio, O_RDWR); }, EACCES});
        return deeds;
    }));
    EXPECT_EQ(driver_of(bdf), driver_name);
}

// What all sessions of a device share changes for nobody while anybody depends on it,
// and is put back when the last one has gone.
TEST_P(PermissionsOf, LimitsOfTheDevice) {
    const dmaprobe_get_limits before = s.limits();
    Raw other = Raw::open(bdf);
    Buffer b;
    dmaprobe_map map = {};

    ASSERT_TRUE(other);
    ASSERT_OK(other.alloc(b, page));
    map.kind = DMAPROBE_MAP_KIND_PAGE;
    map.buffer_id = b.id;
    map.length = page;
    ASSERT_OK(other(map));
    // Nobody without privileges sets what a list may be like, or a mask of more than 32 bits.
    const auto deeds = [&](int expected) {
        return [=, this](Raw& mine) -> std::vector<Deed> {
            return {{"mask", [&mine] { return mine.set_mask(0xffffffff); }, expected},
                    {"mask of 33 bits", [&mine] { return mine.set_mask(mask_of(33)); }, EPERM},
                    {"mask of 64 bits", [&mine] { return mine.set_mask(~uint64_t{0}); }, EPERM},
                    {"segments",
                     [&mine, this] {
                         return mine.set_segments(DMAPROBE_SET_SEGMENTS_MAX_SIZE,
                                                  static_cast<uint32_t>(4 * page));
                     },
                     EPERM}};
        };
    };
    EXPECT_NOTHING_WRONG(as(GetParam(), deeds(EBUSY)));
    EXPECT_EQ(s.limits().dma_mask, before.dma_mask);
    EXPECT_EQ(s.limits().max_segment_size, before.max_segment_size);
    ASSERT_OK(other.close());
    EXPECT_NOTHING_WRONG(as(GetParam(), deeds(0)));
    ASSERT_OK(s.close());
    s = Raw::open(bdf);
    ASSERT_TRUE(s);
    EXPECT_EQ(s.limits().dma_mask, before.dma_mask);
    EXPECT_EQ(s.limits().max_segment_size, before.max_segment_size);
}

// How wide a mask may be is the administrator's to say, when the module is loaded.
TEST_F(Permissions, MaskBits) {
    const KeepDriver keep(bdf);
    const auto reload = [&](const std::vector<std::string>& argv) {
        int err = 0;

        ASSERT_OK(s.close());
        ASSERT_TRUE(wait_for([&] { return (err = remove_module(driver_name)) == 0; }, seconds(10)))
            << strerrorname_np(err);
        const Outcome loaded = run(argv);
        ASSERT_EQ(loaded.code, 0) << loaded.err;
        ASSERT_TRUE(wait_for([&] { return exists(node_path(bdf)); }, seconds(10)));
        s = Raw::open(bdf);
        ASSERT_TRUE(s) << strerror(s.error());
    };

    if (!exists("/sys/module/dmaprobe/initstate"))
        GTEST_SKIP() << "dmaprobe is built into the kernel";
    ASSERT_NO_FATAL_FAILURE(reload({"modprobe", driver_name, "unprivileged_mask_bits=36"}));
    give_node();
    EXPECT_NOTHING_WRONG(as(Who::opener, [&](Raw& mine) -> std::vector<Deed> {
        auto b = std::make_shared<Buffer>();

        return {
            {"mask of 37 bits", [&mine] { return mine.set_mask(mask_of(37)); }, EPERM},
            {"mask of 36 bits", [&mine] { return mine.set_mask(mask_of(36)); }, 0},
            {"buffer", [&mine, b, this] { return mine.alloc(*b, page); }, 0},
            {"map",
             [&mine, b, this] {
                 dmaprobe_map op = {};

                 op.kind = DMAPROBE_MAP_KIND_PAGE;
                 op.buffer_id = b->id;
                 op.length = page;
                 return mine(op);
             },
             0},
        };
    }));
    ASSERT_NO_FATAL_FAILURE(reload({"modprobe", driver_name}));
}

// What makes a DMA address, each by itself.
std::vector<Deed> address_makers(Raw& mine, int expected, bool iova) {
    const uint64_t page = page_size();
    auto b = std::make_shared<Buffer>();
    std::vector<Deed> deeds = {
        {"buffer", [=, &mine] { return mine.alloc(*b, page); }, 0},
        {"map",
         [=, &mine] {
             dmaprobe_map op = {};

             op.kind = DMAPROBE_MAP_KIND_PAGE;
             op.buffer_id = b->id;
             op.length = page;
             return mine(op);
         },
         expected},
        {"list",
         [=, &mine] {
             const std::array<dmaprobe_sg_entry, 1> entries = {{{0, page, b->id, 0}}};
             dmaprobe_map_sg op = {};

             return mine.map_sg(op, entries);
         },
         expected},
    };

    for (const uint32_t kind : {DMAPROBE_ALLOC_KIND_COHERENT, DMAPROBE_ALLOC_KIND_NONCOHERENT,
                                DMAPROBE_ALLOC_KIND_PAGES, DMAPROBE_ALLOC_KIND_NONCONTIGUOUS})
        deeds.push_back({"alloc",
                         [=, &mine] {
                             Allocation a;

                             return allocate(mine, a, {"", kind}, page);
                         },
                         expected});
    if (iova)
        deeds.push_back({"IOVA space",
                         [=, &mine] {
                             dmaprobe_iova_alloc op = {};

                             return mine.iova_alloc(op, page);
                         },
                         expected});
    return deeds;
}

// A privileged session has widened what the device can do: the others have to wait.
TEST_P(PermissionsOf, WidenedLimits) {
    const bool iova = iommu && !s.missing(DMAPROBE_FEATURE_DMA_IOVA);
    const int widened = GetParam() == Who::handed ? 0 : EPERM;
    const auto makers = [&](int expected) {
        return [=](Raw& mine) { return address_makers(mine, expected, iova); };
    };
    // The session is root's own if it is handed over: nothing may be left mapped in it.
    const auto again = [&] {
        ASSERT_OK(s.close());
        s = Raw::open(bdf);
        ASSERT_TRUE(s);
    };

    ASSERT_OK(s.set_mask(~uint64_t{0}));
    EXPECT_NOTHING_WRONG(as(GetParam(), makers(widened)));
    ASSERT_NO_FATAL_FAILURE(again());
    ASSERT_OK(s.set_mask(~uint64_t{0}, DMAPROBE_SET_MASK_COHERENT));
    EXPECT_NOTHING_WRONG(as(GetParam(), makers(widened)));
    ASSERT_NO_FATAL_FAILURE(again());
    ASSERT_OK(s.set_segments(DMAPROBE_SET_SEGMENTS_MAX_SIZE, 0x80000000));
    EXPECT_NOTHING_WRONG(as(GetParam(), makers(widened)));
    // They go back with the last session.
    ASSERT_NO_FATAL_FAILURE(again());
    EXPECT_NOTHING_WRONG(as(GetParam(), makers(0)));
}

// All sessions of those without privileges have so many addresses together.
TEST_P(PermissionsOf, AddressesOfTheDevice) {
    const Parameter most("device_max_addresses", "4");
    const bool iova = iommu && !s.missing(DMAPROBE_FEATURE_DMA_IOVA);
    const int beyond = GetParam() == Who::handed ? 0 : ENOSPC;

    EXPECT_NOTHING_WRONG(as(GetParam(), [&](Raw& mine) -> std::vector<Deed> {
        auto b = std::make_shared<Buffer>();
        auto b2 = std::make_shared<Buffer>();
        auto last = std::make_shared<uint32_t>();
        auto second = std::make_shared<Raw>(Raw::open(bdf));
        const auto map = [last, this](const Raw& session, const Buffer& of) {
            dmaprobe_map op = {};

            op.kind = DMAPROBE_MAP_KIND_PAGE;
            op.buffer_id = of.id;
            op.length = page;
            const int err = session(op);
            if (!err)
                *last = op.id;
            return err;
        };
        std::vector<Deed> deeds = {
            {"buffers",
             [=, &mine, this] {
                 const int err = mine.alloc(*b, page);
                 return err ? err : second->alloc(*b2, page);
             },
             0},
        };

        for (int i = 0; i < 3; i++)
            deeds.push_back({"a map of four", [=, &mine] { return map(mine, *b); }, 0});
        deeds.push_back({"the fourth in another session", [=] { return map(*second, *b2); }, 0});
        deeds.push_back({"the fifth there", [=] { return map(*second, *b2); },
                         // That session is the user's own in each case.
                         GetParam() == Who::handed ? 0 : ENOSPC});
        for (const Deed& deed : address_makers(mine, beyond, iova))
            deeds.push_back(deed);
        if (beyond) {
            // What ends with its session is given back, and what is unmapped.
            deeds.push_back({"close", [=] { return second->close(); }, 0});
            deeds.push_back({"a map instead", [=, &mine] { return map(mine, *b); }, 0});
            deeds.push_back({"and one too many", [=, &mine] { return map(mine, *b); }, ENOSPC});
            deeds.push_back({"unmap", [=, &mine] { return mine.unmap(*last); }, 0});
            deeds.push_back({"one more instead", [=, &mine] { return map(mine, *b); }, 0});
        }
        return deeds;
    }));
    // Root is not bounded by it.
    Buffer b;
    ASSERT_OK(s.alloc(b, page));
    for (int i = 0; i < 8; i++) {
        dmaprobe_map op = {};

        op.kind = DMAPROBE_MAP_KIND_PAGE;
        op.buffer_id = b.id;
        op.length = page;
        EXPECT_OK(s(op));
    }
}

// A space of more than a gigabyte is for the privileged.
TEST_P(PermissionsOf, LargeSpaces) {
    if (s.missing(DMAPROBE_FEATURE_DMA_IOVA) || !iommu)
        GTEST_SKIP() << "no IOVA spaces here";
    EXPECT_NOTHING_WRONG(as(GetParam(), [&](Raw& mine) -> std::vector<Deed> {
        const auto space = [&mine](uint64_t length, uint32_t flags) {
            dmaprobe_iova_alloc op = {};
            const int err = mine.iova_alloc(op, length, flags);

            return err == ENOSPC ? 0 : err; // others may have used it up
        };
        constexpr uint64_t most = DMAPROBE_IOVA_RANGE_MAX;

        return {
            {"a gigabyte", [=] { return space(most, 0); }, 0},
            {"more", [=] { return space(most + 1, 0); }, EPERM},
            {"to try more", [=] { return space(most + 1, DMAPROBE_IOVA_ALLOC_TRY); }, EPERM},
        };
    }));
}

// The function is reset before somebody else has it, so that no DMA of the last one is left.
TEST_P(PermissionsOf, EnabledByAnotherUserBefore) {
    const bool resets = exists(pci_path(bdf) + "/reset");
    // A session that was handed over is root's.
    const int expected = resets || GetParam() == Who::handed ? 0 : EPERM;
    const auto enable = [](const Raw& session, uint32_t on) {
        dmaprobe_enable op = {};

        op.enable = on;
        return session(op);
    };

    ASSERT_OK(enable(s, 1));
    ASSERT_OK(enable(s, 0));
    EXPECT_NOTHING_WRONG(as(GetParam(), [&](Raw& mine) -> std::vector<Deed> {
        return {{"enable", [&] { return enable(mine, 1); }, expected},
                {"enable again", [&] { return enable(mine, 1); }, expected},
                {"give up", [&] { return enable(mine, 0); }, 0},
                {"enable once more", [&] { return enable(mine, 1); }, expected}};
    }));
    EXPECT_OK(enable(s, 1)) << "root can do without a reset";
    EXPECT_OK(enable(s, 0));
}

// What is promised to be possible is possible.
TEST_P(PermissionsOf, OrdinaryWork) {
    EXPECT_NOTHING_WRONG(as(GetParam(), [&](Raw& mine) -> std::vector<Deed> {
        auto b = std::make_shared<Buffer>();
        auto map = std::make_shared<dmaprobe_map>();
        std::vector<Deed> deeds = {
            {"buffer", [&mine, b, this] { return mine.alloc(*b, page); }, 0},
            {"mmap", [&mine, b] { return mine.mmap(*b) ? 0 : errno; }, 0},
            {"map",
             [&mine, b, map, this] {
                 map->kind = DMAPROBE_MAP_KIND_PAGE;
                 map->buffer_id = b->id;
                 map->length = page;
                 return mine(*map);
             },
             0},
            {"unmap", [&mine, map] { return mine.unmap(map->id); }, 0},
            {"free", [&mine, b] { return mine.free(*b); }, 0},
        };
        return deeds;
    }));
}

// Root, without one capability.
TEST_F(Permissions, EachCapabilityByItself) {
    Allocation a;

    ASSERT_OK(allocate(s, a, alloc_ways[0], page));
    const auto pool = [&] {
        dmaprobe_pool_create op = {};

        op.block_size = 64;
        return s(op);
    };
    const auto table = [&] {
        std::vector<dmaprobe_sgtable_entry> pieces;

        return sgtable(s, a.id, pieces, DMAPROBE_SGTABLE_PHYS);
    };
    const auto translate = [&] {
        dmaprobe_extent extent = {};
        dmaprobe_translate op = {};

        op.flags = DMAPROBE_TRANSLATE_PHYS;
        op.iova = a.dma_addr;
        op.length = page;
        op.nr_extents = 1;
        op.extents = reinterpret_cast<uintptr_t>(&extent);
        return s(op);
    };
    const auto shared = [&] {
        dmaprobe_map op = {};
        Buffer b;

        EXPECT_OK(s.alloc(b, page));
        op.kind = DMAPROBE_MAP_KIND_PAGE;
        op.buffer_id = b.id;
        op.length = page;
        op.attrs = DMAPROBE_ATTR_CC_SHARED;
        return s(op);
    };
    const auto segments = [&] {
        return s.set_segments(DMAPROBE_SET_SEGMENTS_MAX_SIZE, static_cast<uint32_t>(4 * page));
    };
    const auto mask = [&] { return s.set_mask(mask_of(33)); };
    const int no_shared = s.info().attrs & DMAPROBE_ATTR_CC_SHARED ? EPERM : EOPNOTSUPP;

    EXPECT_NOTHING_WRONG(in_child([] { return give_up_capability(CAP_SYS_ADMIN); },
                                  [&] {
                                      return outcomes({{"sgtable", table, EPERM},
                                                       {"translate", translate, EPERM},
                                                       {"pool", pool, 0},
                                                       {"segments", segments, EBUSY},
                                                       {"mask", mask, EBUSY}});
                                  }));
    EXPECT_NOTHING_WRONG(in_child([] { return give_up_capability(CAP_SYS_RAWIO); },
                                  [&] {
                                      return outcomes({{"sgtable", table, 0},
                                                       {"translate", translate, translated},
                                                       {"pool", pool, EPERM},
                                                       {"segments", segments, EPERM},
                                                       {"mask", mask, EPERM},
                                                       {"shared", shared, no_shared}});
                                  }));
}

} // namespace
} // namespace selftest
