// SPDX-License-Identifier: GPL-2.0-only

#include "system.h"

#include "fixture.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <poll.h>
#include <sstream>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

namespace selftest {

namespace fs = std::filesystem;
using std::chrono::milliseconds;
using std::chrono::seconds;

std::string read_text(const std::string& path) {
    std::ifstream in(path);
    std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());

    if (text.ends_with('\n'))
        text.pop_back();
    return text;
}

int write_text(const std::string& path, const std::string& text) {
    const Fd fd(open(path.c_str(), O_WRONLY | O_CLOEXEC));

    if (!fd)
        return errno;
    return write(fd.get(), text.data(), text.size()) < 0 ? errno : 0;
}

bool exists(const std::string& path) {
    return access(path.c_str(), F_OK) == 0;
}

std::string pci_path(const std::string& bdf) {
    return "/sys/bus/pci/devices/" + bdf;
}

std::string driver_of(const std::string& bdf) {
    std::error_code none;

    return fs::read_symlink(pci_path(bdf) + "/driver", none).filename().string();
}

int unbind_driver(const std::string& bdf) {
    return write_text(pci_path(bdf) + "/driver/unbind", bdf);
}

int probe_driver(const std::string& bdf) {
    if (const int err = write_text("/sys/bus/pci/drivers_probe", bdf))
        return err;
    if (driver_of(bdf) == driver_name &&
        !wait_for([&] { return exists(node_path(bdf)); }, seconds(5)))
        return ETIMEDOUT;
    return 0;
}

int remove_module(const char* name) {
    return syscall(SYS_delete_module, name, O_NONBLOCK) ? errno : 0;
}

bool module_loaded() {
    return exists("/sys/bus/pci/drivers/dmaprobe");
}

bool load_module() {
    return run({"modprobe", driver_name}).code == 0 && module_loaded();
}

KeepDriver::KeepDriver(std::string bdf)
    : bdf_(std::move(bdf)), driver_(driver_of(bdf_)),
      override_(read_text(pci_path(bdf_) + "/driver_override")), module_(module_loaded()) {
    if (override_ == "(null)")
        override_.clear();
}

bool KeepDriver::restore() {
    if (module_ && !module_loaded())
        load_module();
    // Before the driver is let go: with another override it could come back.
    write_text(pci_path(bdf_) + "/driver_override", override_ + "\n");
    if (driver_of(bdf_) != driver_) {
        if (!driver_of(bdf_).empty())
            unbind_driver(bdf_);
        if (!driver_.empty())
            probe_driver(bdf_);
    }
    return driver_of(bdf_) == driver_;
}

std::vector<std::string> group_of_like(const std::string& bdf) {
    const auto kind = [](const std::string& name) {
        return read_text(pci_path(name) + "/vendor") + read_text(pci_path(name) + "/device");
    };
    const std::string wanted = kind(bdf);
    std::error_code none;

    for (const auto& group : fs::directory_iterator("/sys/kernel/iommu_groups", none)) {
        std::vector<std::string> found;

        for (const auto& member : fs::directory_iterator(group.path() / "devices", none))
            if (const std::string name = member.path().filename().string(); kind(name) == wanted)
                found.push_back(name);
        std::ranges::sort(found);
        if (found.size() >= 2)
            return found;
    }
    return {};
}

OneCpu::OneCpu() {
    cpu_set_t one;

    CPU_ZERO(&had_);
    sched_getaffinity(0, sizeof(had_), &had_);
    CPU_ZERO(&one);
    CPU_SET(static_cast<size_t>(sched_getcpu()), &one);
    EXPECT_EQ(sched_setaffinity(0, sizeof(one), &one), 0) << strerror(errno);
}

OneCpu::~OneCpu() {
    sched_setaffinity(0, sizeof(had_), &had_);
}

int64_t pinned_pages() {
    // What the CPUs count by themselves is only added up at times.
    if (write_text("/proc/sys/vm/stat_refresh", "1"))
        return -1;
    std::istringstream stats(read_text("/proc/vmstat"));
    std::string name;
    int64_t value = 0;
    int64_t pinned = 0;

    while (stats >> name >> value) {
        if (name == "nr_foll_pin_acquired")
            pinned += value;
        if (name == "nr_foll_pin_released")
            pinned -= value;
    }
    return pinned;
}

std::string dma_in_use(const std::string& bdf) {
    std::istringstream dump(read_text("/sys/kernel/debug/dma-api/dump"));
    std::string in_use = read_text(pci_path(bdf) + "/pools");
    std::string line;

    // Books that were closed keep what was in them.
    const bool kept = read_text("/sys/kernel/debug/dma-api/disabled") != "Y";

    while (kept && std::getline(dump, line))
        if (line.contains(bdf))
            in_use += line + "\n";
    return in_use;
}

bool wait_for_child(pid_t child, milliseconds timeout, int& status) {
    return wait_for([&] { return waitpid(child, &status, WNOHANG) == child; }, timeout);
}

Outcome run(const std::vector<std::string>& argv, milliseconds deadline,
            const std::function<void()>& in_child) {
    Outcome outcome;
    std::vector<char*> args;
    std::array<std::array<int, 2>, 2> pipes{};

    args.reserve(argv.size() + 1);
    for (const std::string& arg : argv)
        args.push_back(const_cast<char*>(arg.c_str()));
    args.push_back(nullptr);
    for (auto& ends : pipes)
        if (pipe2(ends.data(), O_CLOEXEC))
            return outcome;

    const pid_t child = fork();
    if (child == 0) {
        const int null = open("/dev/null", O_RDONLY);

        if (null >= 0)
            dup2(null, STDIN_FILENO);
        dup2(pipes[0][1], STDOUT_FILENO);
        dup2(pipes[1][1], STDERR_FILENO);
        setpgid(0, 0);
        if (in_child)
            in_child();
        execvp(args[0], args.data());
        dprintf(STDERR_FILENO, "%s: %s\n", args[0], strerror(errno));
        _exit(127);
    }
    Fd out(pipes[0][0]);
    Fd err(pipes[1][0]);
    close(pipes[0][1]);
    close(pipes[1][1]);
    if (child < 0)
        return outcome;

    const auto end = std::chrono::steady_clock::now() + deadline;
    const auto left = [&] {
        return std::chrono::duration_cast<milliseconds>(end - std::chrono::steady_clock::now());
    };
    while ((out || err) && left().count() > 0) {
        std::array<pollfd, 2> poll_fds = {pollfd{out.get(), POLLIN, 0},
                                          pollfd{err.get(), POLLIN, 0}};

        if (poll(poll_fds.data(), poll_fds.size(), static_cast<int>(left().count())) <= 0)
            continue;
        for (size_t i = 0; i < 2; i++) {
            std::array<char, 4096> piece{};

            if (!poll_fds[i].revents)
                continue;
            const ssize_t n = read(poll_fds[i].fd, piece.data(), piece.size());
            if (n > 0)
                (i ? outcome.err : outcome.out).append(piece.data(), static_cast<size_t>(n));
            else
                (i ? err : out).close();
        }
    }

    int status = 0;
    if (!wait_for_child(child, std::max(left(), milliseconds(1)), status)) {
        outcome.late = true;
        kill(-child, SIGKILL);
        waitpid(child, &status, 0);
    }
    if (WIFEXITED(status))
        outcome.code = WEXITSTATUS(status);
    else if (WIFSIGNALED(status))
        outcome.signal = WTERMSIG(status);
    return outcome;
}

} // namespace selftest
