// SPDX-License-Identifier: GPL-2.0-only
// The table of the DMA API's calls in the manual, against the ABI's header and against
// the library's.

#include <dmaprobe/query.h>

#include <gtest/gtest.h>

#include <algorithm>
#include <format>
#include <map>
#include <regex>
#include <set>
#include <string>
#include <string_view>
#include <vector>

// The files as they were when this was built, from the top of the tree. The names are global
// because arm64's linker takes all local ones of a section for the first.
asm(".pushsection .rodata\n"
    ".globl selftest_calls_csv, selftest_calls_csv_end, selftest_calls_abi, "
    "selftest_calls_abi_end\n"
    "selftest_calls_csv: .incbin \"Documentation/api-calls.csv\"\n"
    "selftest_calls_csv_end:\n"
    "selftest_calls_abi: .incbin \"uapi/linux/dmaprobe.h\"\n"
    "selftest_calls_abi_end:\n"
    ".popsection\n");
// NOLINTBEGIN(modernize-avoid-c-arrays): symbols of the assembler
extern "C" const char selftest_calls_csv[];
extern "C" const char selftest_calls_csv_end[];
extern "C" const char selftest_calls_abi[];
extern "C" const char selftest_calls_abi_end[];
// NOLINTEND(modernize-avoid-c-arrays)

namespace selftest {
namespace {

struct Row {
    std::string call;
    std::string document;
    std::string command;
    std::string how;
    std::string since;
    std::string why;

    // As the library has it, on a kernel that has the call.
    std::string detail() const {
        if (!why.empty())
            return why;
        return how.empty() ? command : command + ", " + how;
    }
};

// RFC 4180, without line breaks in fields.
std::vector<std::string> fields_of(std::string_view line) {
    std::vector<std::string> fields(1);
    bool quoted = false;

    for (size_t i = 0; i < line.size(); i++) {
        if (line[i] == '"' && quoted && i + 1 < line.size() && line[i + 1] == '"')
            fields.back() += line[++i];
        else if (line[i] == '"')
            quoted = !quoted;
        else if (line[i] == ',' && !quoted)
            fields.emplace_back();
        else
            fields.back() += line[i];
    }
    return fields;
}

std::vector<Row> parse(std::string_view text) {
    std::vector<Row> rows;

    while (!text.empty()) {
        const size_t end = std::min(text.find('\n'), text.size());
        std::vector<std::string> f = fields_of(text.substr(0, end));

        text.remove_prefix(std::min(end + 1, text.size()));
        f.resize(6);
        rows.push_back({f[0], f[1], f[2], f[3], f[4], f[5]});
    }
    return rows;
}

const std::vector<Row>& table() {
    static const std::vector<Row> rows = [] {
        std::vector<Row> all = parse({selftest_calls_csv, selftest_calls_csv_end});

        if (!all.empty())
            all.erase(all.begin()); // the heads of the columns
        return all;
    }();
    return rows;
}

// Whether the header defines the command, with a number.
bool is_command(const std::string& name) {
    static const std::regex define(
        R"(#define (DMAPROBE_[A-Z_]+)\s+_IO\(DMAPROBE_IOC_MAGIC, \d+\))");
    static const std::set<std::string> commands = [] {
        std::set<std::string> all;

        for (std::cregex_iterator at(selftest_calls_abi, selftest_calls_abi_end, define), end;
             at != end; ++at)
            all.insert((*at)[1]);
        return all;
    }();

    return commands.contains(name);
}

TEST(CallTable, EveryRowHasACommandOrAReason) {
    static const std::set<std::string> documents = {"", "DMA-API.txt", "noncontiguous", "iova",
                                                    "dma-iommu.c"};
    std::set<std::string> seen;

    ASSERT_GT(table().size(), 100u);
    for (const Row& row : table()) {
        SCOPED_TRACE(row.call);
        EXPECT_FALSE(row.call.empty());
        EXPECT_TRUE(seen.insert(row.call).second) << "twice";
        EXPECT_TRUE(documents.contains(row.document)) << row.document;
        EXPECT_NE(row.command.empty(), row.why.empty())
            << "a row has either a command or a reason why there is none";
        if (row.why.empty()) {
            EXPECT_TRUE(is_command(row.command)) << row.command << " is no command";
        } else {
            EXPECT_EQ(row.how + row.since, "");
        }
    }
}

TEST(CallTable, KnowsACommandWhenItSeesOne) {
    EXPECT_TRUE(is_command("DMAPROBE_MAP"));
    EXPECT_TRUE(is_command("DMAPROBE_IOVA_DESTROY"));
    for (const char* none : {"", "MAP", "DMAPROBE_", "DMAPROBE_IOVA", "DMAPROBE_MAP_ATTRS",
                             "DMAPROBE_RUN_MAX", "DMAPROBE_map"})
        EXPECT_FALSE(is_command(none)) << none;
}

// The library has the same, with what a kernel lacks missing.
TEST(CallTable, LibraryAndManualAgree) {
    using dmaprobe::CallStatus;
    std::map<std::string, const Row*> left;

    for (const Row& row : table())
        left.emplace(row.call, &row);
    const auto young = dmaprobe::kernel_calls({.dma_iova = true, .map_phys = true});
    const auto old = dmaprobe::kernel_calls({});
    ASSERT_EQ(young.size(), old.size());
    for (size_t i = 0; i < young.size(); i++) {
        const dmaprobe::Call& call = young[i];

        SCOPED_TRACE(call.name);
        EXPECT_EQ(old[i].name, call.name);
        const auto found = left.find(call.name);
        if (found == left.end()) {
            ADD_FAILURE() << "the manual does not have this call";
            continue;
        }
        const Row& row = *found->second;
        left.erase(found);
        EXPECT_EQ(call.detail, row.detail());
        if (!row.why.empty()) {
            EXPECT_TRUE(call.status == CallStatus::gone || call.status == CallStatus::not_driven);
            if (call.status == CallStatus::gone) {
                EXPECT_FALSE(row.document.empty()) << "gone, and no document has it";
            }
        } else {
            EXPECT_EQ(call.status, CallStatus::offered);
        }
        if (row.since.empty()) {
            EXPECT_EQ(old[i].status, call.status);
            EXPECT_EQ(old[i].detail, call.detail);
        } else {
            EXPECT_EQ(old[i].status, CallStatus::missing);
            EXPECT_EQ(old[i].detail, std::format("this kernel is older than Linux {}", row.since));
        }
    }
    for (const auto& [name, row] : left)
        ADD_FAILURE() << name << ": the library does not have this call";
}

} // namespace
} // namespace selftest
