// SPDX-License-Identifier: GPL-2.0-only
// Every allocation inside a call fails once, and every copy from or to user space: the
// first, the second, until the call comes to its end without. Needs a kernel with fault
// injection (Documentation/fault-injection/ of the kernel).

#include "support/ktap.h"
#include "support/ops.h"
#include "support/system.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <fcntl.h>
#include <format>
#include <map>
#include <memory>
#include <optional>
#include <ostream>
#include <set>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>
#include <utility>

namespace selftest {
namespace {

// The kernel's settings, put back at the end.
class Settings {
public:
    Settings(const Settings&) = delete;
    Settings& operator=(const Settings&) = delete;
    Settings() {
        constexpr std::string_view debugfs = "/sys/kernel/debug/";

        // Also allocations that may sleep, of every size, and without a word: what is
        // printed about it looks like a report of a bug.
        for (const auto& [file, value] :
             {std::pair{"failslab/ignore-gfp-wait", "N"}, std::pair{"failslab/cache-filter", "N"},
              std::pair{"failslab/verbose", "0"}, std::pair{"fail_page_alloc/ignore-gfp-wait", "N"},
              std::pair{"fail_page_alloc/ignore-gfp-highmem", "N"},
              std::pair{"fail_page_alloc/min-order", "0"},
              std::pair{"fail_page_alloc/verbose", "0"}, std::pair{"fail_usercopy/verbose", "0"}}) {
            const std::string path = std::format("{}{}", debugfs, file);

            if (!exists(path)) {
                // Copies that fail are one kind more, where the kernel has it.
                if (!path.contains("usercopy"))
                    missing_ = path;
                return;
            }
            before_.emplace_back(path, read_text(path));
            if (const int err = write_text(path, value))
                missing_ = std::format("{}: {}", path, strerror(err));
        }
    }
    ~Settings() {
        for (const auto& [path, value] : before_)
            write_text(path, value);
    }

    // What the kernel lacks, or nothing.
    const std::string& missing() const { return missing_; }

private:
    std::vector<std::pair<std::string, std::string>> before_;
    std::string missing_;
};

// The file by which a thread asks for its nth allocation to fail, or copy from or to
// user space where the kernel can do that too. What this does allocates nothing, but
// copies.
class Nth {
public:
    Nth() : fd_(open("/proc/thread-self/fail-nth", O_RDWR | O_CLOEXEC)) {}

    explicit operator bool() const { return static_cast<bool>(fd_); }

    void arm(unsigned n) const {
        std::array<char, 16> text;
        const auto size =
            static_cast<size_t>(std::to_chars(text.begin(), text.end(), n).ptr - text.data());

        // The copy in here can be the nth of before.
        for (int tries = 0; pwrite(fd_.get(), text.data(), size, 0) < 0; tries++)
            if (tries == 3)
                std::abort();
    }

    // Whether something was made to fail.
    bool disarm() const {
        char left = 0;
        // If it fails, this copy was the nth.
        const bool was_read = pread(fd_.get(), &left, 1, 0) == 1;

        arm(0);
        return was_read && left == '0';
    }

private:
    Fd fd_;
};

// What a scene plays with. All of it goes when the scene is over.
struct Stage {
    explicit Stage(std::string device) : bdf(std::move(device)), live(bdf) {
        EXPECT_OK(live.s.set_segments(DMAPROBE_SET_SEGMENTS_MAX_SIZE, 0x80000000));
    }

    std::string bdf;
    Live live;
    Memory memory;
    std::vector<Fd> fds;
    std::vector<std::byte> bytes; // the op's struct, if there is one
    std::vector<std::shared_ptr<void>> keep;

    // Something that stays where it is until the scene is over.
    template <class T>
    T& hold(T value) {
        auto held = std::make_shared<T>(std::move(value));

        keep.push_back(held);
        return *held;
    }
    Buffer buffer(uint64_t length, uint32_t kind = DMAPROBE_BUFFER_KIND_CONTIGUOUS) {
        Buffer b;

        EXPECT_OK(live.s.alloc(b, length, kind));
        return b;
    }
    uint32_t alloc(uint64_t length, uint32_t kind) {
        dmaprobe_alloc op = {};

        op.length = length;
        op.kind = kind;
        EXPECT_OK(live.s(op));
        return op.id;
    }
};

// 0 or errno. It is called again after it failed.
using Act = std::function<int()>;

struct Scene {
    // NOLINTBEGIN(readability-redundant-member-init): need not all be named
    std::string name{};
    // Make what the act needs.
    std::function<Act(Stage&)> prepare{};
    // NOLINTEND(readability-redundant-member-init)
    // What it can answer when there is no memory. Nothing: it cannot fail.
    std::set<int> errnos = {ENOMEM};
    Needs needs = Needs::nothing;
    // A pool keeps what it has grown by, and stays charged for it.
    bool grows = false;
};

void PrintTo(const Scene& scene, std::ostream* out) {
    *out << scene.name;
}

// An act that makes one call.
template <class T, class Fill>
Act one(Stage& stage, Fill fill) {
    T op = {};

    fill(op);
    return [&stage, op] {
        T copy = op;

        return stage.live.s(copy);
    };
}

Scene of_op(const Op& op) {
    Scene scene = {.name = op.name, .prepare = {}, .needs = op.needs};

    // The kernel's own calls do not say why they failed.
    if (op.command == DMAPROBE_IOVA_ALLOC)
        scene.errnos.insert(ENOSPC);
    if (op.command == DMAPROBE_MAP_SG)
        scene.errnos.insert(EIO);
    scene.grows = op.command == DMAPROBE_POOL_ALLOC;
    scene.prepare = [&op](Stage& stage) -> Act {
        stage.bytes.resize(op.size);
        op.sample(stage.live, stage.bytes.data());
        return [&stage, &op] {
            const int err = submit(stage.live.s.fd(), op.command, stage.bytes.data());

            if (!err && op.command == DMAPROBE_EXPORT)
                stage.fds.emplace_back(
                    get<int32_t>(stage.bytes.data(), offsetof(dmaprobe_export, fd)));
            return err;
        };
    };
    return scene;
}

std::vector<Scene> all_ops() {
    std::vector<Scene> scenes;

    for (const Op& op : ops())
        scenes.push_back(of_op(op));
    return scenes;
}

// One of each object, in use by another where it can be.
void fill(Stage& stage) {
    const Buffer pages = stage.buffer(40 * page_size(), DMAPROBE_BUFFER_KIND_SCATTERED);
    dmaprobe_map_resource bar = {};
    dmaprobe_map_dmabuf import = {};
    dmaprobe_map_sg list = {};
    std::vector<dmaprobe_sg_entry> entries;
    Buffer pinned;

    for (uint64_t at = 0; at < pages.length; at += page_size())
        entries.push_back({at, page_size(), pages.id, 0});
    EXPECT_OK(stage.live.s.map_sg(list, entries));
    EXPECT_OK(stage.live.s.pin(pinned, stage.live.extents.data(), page_size()));
    for (const Kind kind : all_kinds)
        stage.live.live(kind);
    stage.live.iova(true);
    for (const uint32_t kind : {DMAPROBE_ALLOC_KIND_COHERENT, DMAPROBE_ALLOC_KIND_NONCONTIGUOUS})
        stage.alloc(8 * page_size(), kind);
    import.fd = stage.live.dmabuf();
    EXPECT_OK(stage.live.s(import));
    bar.length = page_size();
    stage.live.s(bar);
}

constexpr uint64_t mib = 1 << 20;

// mmap() and munmap() of an object.
Act mmap_act(Stage& stage, uint64_t offset, uint64_t length) {
    return [&stage, offset, length] {
        void* at = mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_SHARED, stage.live.s.fd(),
                        static_cast<off_t>(offset));

        if (at == MAP_FAILED)
            return errno;
        const int err = munmap(at, length) ? errno : 0;
        if (err)
            munmap(at, length);
        return err;
    };
}

std::string numbered(const char* what, uint32_t kind) {
    return std::format("{}_{}", what, kind);
}

void add_buffers(std::vector<Scene>& all) {
    struct Layout {
        const char* name;
        uint32_t kind;
        uint64_t length;
        uint32_t order;
        uint64_t offset;
    };
    static constexpr Layout layouts[] = {
        {"contiguous", DMAPROBE_BUFFER_KIND_CONTIGUOUS, mib, 0, 0},
        {"scattered", DMAPROBE_BUFFER_KIND_SCATTERED, mib / 4, 0, 0},
        {"pieces", DMAPROBE_BUFFER_KIND_SCATTERED, mib, 4, 0},
        {"kmalloc", DMAPROBE_BUFFER_KIND_KMALLOC, 65536, 0, 8},
    };

    for (const Layout& layout : layouts)
        all.push_back(
            {.name = std::format("buffer_{}", layout.name), .prepare = [&layout](Stage& stage) {
                 return one<dmaprobe_buffer_alloc>(stage, [&](auto& op) {
                     op.kind = layout.kind;
                     op.length = layout.length;
                     op.order = layout.order;
                     op.offset = layout.offset;
                 });
             }});
    all.push_back({.name = "pin_untouched", .prepare = [](Stage& stage) {
                       // Pages that are there only when they are pinned.
                       const size_t length = 48 * page_size();
                       void* at = mmap(nullptr, length, PROT_READ | PROT_WRITE,
                                       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

                       stage.memory = Memory(at, length);
                       return one<dmaprobe_buffer_pin>(stage, [&](auto& op) {
                           op.addr = stage.memory.address();
                           op.length = length;
                       });
                   }});
    all.push_back({.name = "pin_many", .prepare = [](Stage& stage) {
                       stage.memory = Memory::fenced(1100 * page_size());
                       memset(stage.memory.data(), 1, stage.memory.size());
                       return one<dmaprobe_buffer_pin>(stage, [&](auto& op) {
                           op.addr = stage.memory.address() + 5;
                           op.length = stage.memory.size() - 5;
                       });
                   }});
    all.push_back({.name = "mmap_buffer", .prepare = [](Stage& stage) {
                       const Buffer b = stage.buffer(mib);

                       return mmap_act(stage, b.mmap_offset, b.length);
                   }});
}

void add_mappings(std::vector<Scene>& all) {
    for (const uint32_t kind :
         {DMAPROBE_MAP_KIND_SINGLE, DMAPROBE_MAP_KIND_PAGE, DMAPROBE_MAP_KIND_PHYS})
        all.push_back({.name = numbered("map", kind),
                       .prepare =
                           [kind](Stage& stage) {
                               const Buffer b = stage.buffer(4 * mib);

                               return one<dmaprobe_map>(stage, [&](auto& op) {
                                   op.kind = kind;
                                   op.buffer_id = b.id;
                                   op.length = b.length;
                               });
                           },
                       // dma_map_phys() came with Linux 6.18.
                       .errnos = {ENOMEM, EOPNOTSUPP}});
    for (const uint32_t kind : {DMAPROBE_MAP_SG_KIND_LIST, DMAPROBE_MAP_SG_KIND_TABLE})
        all.push_back({.name = numbered("map_long_list", kind),
                       .prepare =
                           [kind](Stage& stage) {
                               const Buffer b =
                                   stage.buffer(300 * page_size(), DMAPROBE_BUFFER_KIND_SCATTERED);
                               auto& entries = stage.hold(std::vector<dmaprobe_sg_entry>());

                               for (uint64_t at = 0; at < b.length; at += page_size())
                                   entries.push_back({at, page_size(), b.id, 0});
                               return one<dmaprobe_map_sg>(stage, [&](auto& op) {
                                   op.kind = kind;
                                   op.entries = reinterpret_cast<uintptr_t>(entries.data());
                                   op.nr_entries = static_cast<uint32_t>(entries.size());
                               });
                           },
                       // dma_map_sg_attrs() has no reason to give.
                       .errnos = {kind == DMAPROBE_MAP_SG_KIND_LIST ? EIO : ENOMEM, ENOMEM}});
    all.push_back({.name = "import_and_unmap", .prepare = [](Stage& stage) -> Act {
                       dmaprobe_export op = {};

                       op.id = stage.alloc(64 * page_size(), DMAPROBE_ALLOC_KIND_NONCONTIGUOUS);
                       EXPECT_OK(stage.live.s(op));
                       stage.fds.emplace_back(op.fd);
                       return [&stage, fd = op.fd] {
                           dmaprobe_map_dmabuf import = {};

                           import.fd = fd;
                           const int err = stage.live.s(import);
                           return err ? err : stage.live.s.unmap(import.id);
                       };
                   }});
}

void add_allocations(std::vector<Scene>& all) {
    for (const uint32_t kind : {DMAPROBE_ALLOC_KIND_COHERENT, DMAPROBE_ALLOC_KIND_NONCOHERENT,
                                DMAPROBE_ALLOC_KIND_PAGES, DMAPROBE_ALLOC_KIND_NONCONTIGUOUS}) {
        all.push_back({.name = numbered("alloc_large", kind), .prepare = [kind](Stage& stage) {
                           return one<dmaprobe_alloc>(stage, [&](auto& op) {
                               op.kind = kind;
                               op.length = mib;
                           });
                       }});
        all.push_back({.name = numbered("mmap_alloc", kind), .prepare = [kind](Stage& stage) {
                           dmaprobe_alloc op = {};

                           op.kind = kind;
                           op.length = mib;
                           EXPECT_OK(stage.live.s(op));
                           return mmap_act(stage, op.mmap_offset, op.length);
                       }});
        all.push_back({.name = numbered("sgtable", kind), .prepare = [kind](Stage& stage) {
                           const uint32_t id = stage.alloc(mib, kind);

                           return one<dmaprobe_get_sgtable>(stage, [&](auto& op) {
                               op.id = id;
                               op.nr_entries = 16;
                               op.entries = stage.live.extents.address();
                           });
                       }});
        all.push_back(
            {.name = numbered("export_and_close", kind), .prepare = [kind](Stage& stage) -> Act {
                 const uint32_t id = stage.alloc(mib, kind);

                 return [&stage, id] {
                     dmaprobe_export op = {};

                     op.id = id;
                     const int err = stage.live.s(op);
                     return err ? err : Fd(op.fd).close();
                 };
             }});
    }
    for (const uint64_t attrs : {DMAPROBE_ATTR_FORCE_CONTIGUOUS, DMAPROBE_ATTR_NO_KERNEL_MAPPING,
                                 DMAPROBE_ATTR_ALLOC_SINGLE_PAGES})
        all.push_back(
            {.name = std::format("alloc_with_{:#x}", attrs), .prepare = [attrs](Stage& stage) {
                 return one<dmaprobe_alloc>(stage, [&](auto& op) {
                     op.length = 128 * page_size();
                     op.attrs = attrs;
                 });
             }});
    // The kernel's address of such memory is made when it is first needed.
    all.push_back({.name = "first_copy", .prepare = [](Stage& stage) {
                       const uint32_t id = stage.alloc(mib, DMAPROBE_ALLOC_KIND_NONCONTIGUOUS);

                       return one<dmaprobe_copy>(stage, [&](auto& op) {
                           op.id = id;
                           op.length = page_size();
                           op.addr = stage.live.extents.address();
                       });
                   }});
    all.push_back({.name = "pool_of_large_blocks", .prepare = [](Stage& stage) -> Act {
                       return [&stage] {
                           dmaprobe_pool_create pool = {};
                           dmaprobe_pool_alloc block = {};

                           pool.block_size = mib;
                           if (const int err = stage.live.s(pool))
                               return err;
                           block.pool_id = pool.id;
                           int err = stage.live.s(block);
                           if (!err)
                               err = stage.live.s.destroy(block.id);
                           const int last = stage.live.s.destroy(pool.id);
                           return err ? err : last;
                       };
                   }});
}

void add_iovas(std::vector<Scene>& all) {
    // Page tables that nothing else has needed yet, at both ends of a large space.
    all.push_back({.name = "link_far_away",
                   .prepare =
                       [](Stage& stage) {
                           const Buffer b = stage.buffer(16 * page_size());
                           dmaprobe_iova_alloc io = {};

                           EXPECT_OK(stage.live.s.iova_alloc(io, 128 * mib));
                           return one<dmaprobe_iova_link>(stage, [&](auto& op) {
                               op.id = io.id;
                               op.buffer_id = b.id;
                               op.offset = 126 * mib;
                               op.length = b.length;
                           });
                       },
                   .needs = Needs::iova});
    all.push_back({.name = "link_and_destroy",
                   .prepare = [](Stage& stage) -> Act {
                       const Buffer b = stage.buffer(mib);

                       return [&stage, b] {
                           const Raw& s = stage.live.s;
                           dmaprobe_iova_alloc io = {};

                           if (const int err = s.iova_alloc(io, b.length))
                               return err;
                           if (const int err = s.link(io.id, 0, b, 0, b.length)) {
                               EXPECT_OK(s.iova_free(io.id));
                               return err;
                           }
                           const int err = s.iova_sync(io.id, 0, b.length);
                           const int last = s.iova_destroy(io.id, b.length);
                           return err ? err : last;
                       };
                   },
                   .errnos = {ENOMEM, ENOSPC},
                   .needs = Needs::iova});
}

// As many calls as need memory for what the run remembers, one of each in a way.
Act long_run(Stage& stage) {
    struct Calls {
        dmaprobe_buffer_alloc buffer = {};
        dmaprobe_map map = {};
        dmaprobe_unmap unmap = {};
        dmaprobe_destroy free = {};
        dmaprobe_nop nop = {};
        std::array<dmaprobe_run_op, 64> ops = {};
    };
    Calls& c = stage.hold(Calls());

    return [&stage, &c] {
        uint32_t nr = 0;
        const auto add = [&](auto& op) {
            op.size = sizeof(op);
            c.ops.at(nr++) = {.cmd = static_cast<uint32_t>(
                                  CommandOf<std::remove_reference_t<decltype(op)>>::value),
                              .result = 0,
                              .arg = reinterpret_cast<uintptr_t>(&op)};
        };

        c.buffer.length = 16 * page_size();
        c.buffer.kind = DMAPROBE_BUFFER_KIND_SCATTERED;
        c.map.buffer_id = c.free.id = DMAPROBE_RUN_ID(0);
        c.map.length = page_size();
        c.unmap.id = DMAPROBE_RUN_ID(1);
        add(c.buffer);
        add(c.map);
        while (nr < c.ops.size() - 2)
            add(c.nop);
        add(c.unmap);
        add(c.free);

        dmaprobe_run run = {};

        run.flags = DMAPROBE_RUN_CONTINUE;
        run.nr_ops = nr;
        run.ops = reinterpret_cast<uintptr_t>(c.ops.data());
        if (const int err = stage.live.s(run))
            return err;
        EXPECT_EQ(run.done, nr);
        for (const dmaprobe_run_op& op : c.ops)
            if (op.result && op.result != -ENOENT)
                return -op.result;
        return 0;
    };
}

void add_lives(std::vector<Scene>& all) {
    all.push_back({.name = "run", .prepare = long_run});
    all.push_back({.name = "open_and_close", .prepare = [](Stage& stage) -> Act {
                       return [path = node_path(stage.bdf)] {
                           Fd fd(open(path.c_str(), O_RDWR | O_CLOEXEC));

                           return fd ? fd.close() : errno;
                       };
                   }});
    // What is torn down cannot fail.
    all.push_back({.name = "close_with_all_live",
                   .prepare = [](Stage& stage) -> Act {
                       fill(stage);
                       return [&stage] { return stage.live.s.close(); };
                   },
                   .errnos = {}});
}

std::vector<Scene> all_sequences() {
    std::vector<Scene> all;

    add_buffers(all);
    add_mappings(all);
    add_allocations(all);
    add_iovas(all);
    add_lives(all);
    return all;
}

std::optional<dmaprobe_get_stats> stats(const Raw& s) {
    dmaprobe_get_stats op = {};

    if (!s)
        return {};
    op.size = sizeof(op);
    EXPECT_EQ(ioctl(s.fd(), DMAPROBE_GET_STATS, &op), 0);
    return op;
}

class FailNthTest : public DeviceTest {
protected:
    static void SetUpTestSuite() { settings_ = std::make_unique<Settings>(); }
    static void TearDownTestSuite() {
        if (points_)
            diagnose(std::format("{} calls and sequences, {} points of failure", scenes_, points_));
        settings_.reset();
    }

    void SetUp() override {
        // A ring does part of its work in another thread.
        if (transport() == "ring")
            GTEST_SKIP() << "by ioctl and run only";
        DeviceTest::SetUp();
        if (IsSkipped() || HasFatalFailure())
            return;
        if (!settings_->missing().empty())
            GTEST_SKIP() << "no fault injection: " << settings_->missing();
        if (!nth)
            GTEST_SKIP() << "no fault injection: /proc/thread-self/fail-nth: " << strerror(errno);
    }

    void report(unsigned points) {
        RecordProperty("points of failure", static_cast<int>(points));
        points_ += points;
        scenes_++;
    }

    static constexpr unsigned enough = 5000;

    Nth nth;

private:
    static std::unique_ptr<Settings> settings_;
    static unsigned points_;
    static unsigned scenes_;
};

std::unique_ptr<Settings> FailNthTest::settings_;
unsigned FailNthTest::points_;
unsigned FailNthTest::scenes_;

class FailNth : public FailNthTest, public testing::WithParamInterface<Scene> {
protected:
    void SetUp() override {
        FailNthTest::SetUp();
        if (IsSkipped() || HasFatalFailure())
            return;
        Op op;
        op.needs = GetParam().needs;
        if (const std::string why = unsupported_reason(op, s); !why.empty())
            GTEST_SKIP() << why;
        EXPECT_OK(s.close());
    }

    // Let the nth allocation of the scene fail. Whether there was one.
    bool play(const Scene& scene, unsigned n) {
        Stage stage(bdf);
        const Act act = scene.prepare(stage);
        const auto before = stats(stage.live.s);
        const std::vector<std::byte> given = stage.bytes;

        nth.arm(n);
        const int err = act();
        if (!nth.disarm()) {
            EXPECT_OK(err);
            return false;
        }
        answers_[err]++;
        if (!err)
            return true;
        EXPECT_TRUE(scene.errnos.contains(err) || (err == EFAULT && !scene.errnos.empty()))
            << strerrorname_np(err) << " (" << err << ") is no answer to this";
        EXPECT_TRUE(stage.bytes == given) << "a call that failed changed its struct";
        auto after = stats(stage.live.s);
        EXPECT_EQ(before.has_value(), after.has_value());
        if (before && after) {
            if (scene.grows)
                after->charged = before->charged;
            EXPECT_EQ(memcmp(&*before, &*after, sizeof(*before)), 0)
                << "the session holds something else than before";
        }
        if (!scene.errnos.empty()) {
            EXPECT_OK(act()) << "with all the memory it wants";
        }
        return true;
    }

    // As often as there are allocations.
    void sweep(const Scene& scene) {
        const int64_t pinned = pinned_pages();
        unsigned n = 0;

        {
            SCOPED_TRACE("nothing fails");
            // Pages and caches that stay are there from now on.
            play(scene, 0x7fffffff);
        }
        // How many there are differs from call to call, when a cache is refilled.
        for (unsigned quiet = 0; !HasFailure() && quiet < 3 && n < enough; n++) {
            SCOPED_TRACE(std::format("allocation or copy {} fails", n + 1));
            restart_deadline();
            quiet = play(scene, n + 1) ? 0 : quiet + 1;
        }
        EXPECT_LT(n, enough);
        unsigned points = 0;
        for (const auto& [err, times] : answers_) {
            RecordProperty(err ? strerrorname_np(err) : "succeeded all the same",
                           static_cast<int>(times));
            points += times;
        }
        EXPECT_EQ(pinned_pages(), pinned) << "pages stay pinned";
        EXPECT_EQ(dma_in_use(bdf), "");
        const Raw idle = Raw::open(bdf);
        ASSERT_TRUE(idle);
        EXPECT_OK(idle.set_mask(0xffffffff)) << "something is still mapped";
        report(points);
    }

private:
    std::map<int, unsigned> answers_;
};

TEST_P(FailNth, Sweep) {
    sweep(GetParam());
}

const auto name_of = [](const auto& row) { return row.param.name; };

INSTANTIATE_TEST_SUITE_P(Op, FailNth, testing::ValuesIn(all_ops()), name_of);
INSTANTIATE_TEST_SUITE_P(Sequence, FailNth, testing::ValuesIn(all_sequences()), name_of);

// From a device without a driver to one that can be opened, and back.
class FailNthBind : public FailNthTest {
protected:
    void SetUp() override {
        FailNthTest::SetUp();
        if (IsSkipped() || HasFatalFailure())
            return;
        EXPECT_OK(s.close());
        keep.emplace(bdf);
        ASSERT_OK(unbind_driver(bdf));
        bind = Fd(open("/sys/bus/pci/drivers/dmaprobe/bind", O_WRONLY | O_CLOEXEC));
        ASSERT_TRUE(bind);
    }

    int probe() const { return pwrite(bind.get(), bdf.data(), bdf.size(), 0) < 0 ? errno : 0; }

    std::optional<KeepDriver> keep;
    Fd bind;
};

TEST_F(FailNthBind, Sweep) {
    unsigned n = 0;

    for (; !HasFailure() && n < enough; n++) {
        SCOPED_TRACE(std::format("allocation or copy {} fails", n + 1));
        restart_deadline();
        nth.arm(n + 1);
        const int err = probe();
        const bool failed = nth.disarm();

        if (err) {
            EXPECT_TRUE(failed);
            EXPECT_TRUE(err == ENOMEM || err == EFAULT)
                << strerrorname_np(err) << " (" << err << ") is no answer to this";
            EXPECT_EQ(driver_of(bdf), "");
            ASSERT_OK(probe()) << "with all the memory it wants";
        }
        ASSERT_EQ(driver_of(bdf), driver_name);
        // The node is devtmpfs's, and the kernel reports to nobody that it could not be made.
        if (!failed || err) {
            EXPECT_TRUE(
                wait_for([&] { return Raw::open(bdf).error() == 0; }, std::chrono::seconds(5)));
        }
        ASSERT_OK(unbind_driver(bdf));
        if (!failed)
            break;
    }
    EXPECT_LT(n, enough);
    report(n);
}

} // namespace
} // namespace selftest
