// SPDX-License-Identifier: MIT
// A device by its files in sysfs; the session enables it.
#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <format>
#include <string_view>
#include <utility>

#include <fcntl.h>
#include <sys/stat.h>

#include <linux/dmaprobe.h>

#include "device_state.h"

namespace dmaprobe {

class [[gnu::visibility("hidden")]] SysfsBackend final : public DeviceBackend {
public:
    SysfsBackend(std::string dir, ConfigSpace config, std::shared_ptr<Channel> channel,
                 std::string why)
        : dir_(std::move(dir)), config_(std::move(config)), channel_(std::move(channel)),
          why_(std::move(why)) {}

    [[nodiscard]] const ConfigSpace& config() const noexcept override { return config_; }

    Result<Bar> bar(unsigned index) const override {
        // One line for each resource: first address, last address, flags.
        const auto text = file::read(dir_ + "/resource");
        if (!text)
            return std::unexpected(text.error());
        std::string_view rest = *text;
        for (unsigned skip = 0; skip < index && !rest.empty(); ++skip)
            rest.remove_prefix(std::min(rest.find('\n'), rest.size() - 1) + 1);
        std::array<std::uint64_t, 3> numbers{};
        for (auto& number : numbers) {
            rest = rest.substr(std::min(rest.find("0x"), rest.size()));
            if (rest.size() < 3)
                return std::unexpected(Error{EPROTO, "bar", "sysfs' resource has another form"});
            rest.remove_prefix(2);
            std::from_chars(rest.data(), rest.data() + rest.size(), number, 16);
        }
        const auto [first, last, flags] = numbers;
        constexpr std::uint64_t memory = 0x200; // IORESOURCE_MEM
        if (flags == 0 || last <= first)
            return std::unexpected(Error{ENXIO, "bar", std::format("there is no BAR {}", index)});
        if ((flags & memory) == 0)
            return std::unexpected(Error{ENXIO, "bar", std::format("BAR {} is no memory", index)});

        const std::string path = std::format("{}/resource{}", dir_, index);
        const file::Fd fd(::open(path.c_str(), O_RDWR | O_CLOEXEC));
        if (!fd) {
            const int code = errno;
            std::string detail = explain_device_file(code, path);
            if (code == EPERM)
                detail += " (kernel lockdown forbids it)";
            return std::unexpected(Error{code, "bar", std::move(detail)});
        }
        auto bar = Bar::map(fd.get(), 0, first, last - first + 1);
        if (!bar && bar.error().code == EINVAL)
            bar.error().detail += "; a kernel with CONFIG_IO_STRICT_DEVMEM may need iomem=relaxed";
        return bar;
    }

    Result<Interrupts> interrupts(unsigned vectors) const override {
        constexpr std::string_view op = "interrupts";
        if (vectors == 0)
            return std::unexpected(Error{EINVAL, op, "at least one vector"});
        return std::unexpected(Error{EOPNOTSUPP, op, "interrupts come by VFIO only: " + why_});
    }

    Result<void> enable(bool on) const override {
        dmaprobe_enable arg{};
        arg.enable = on ? 1 : 0;
        return channel_->call(DMAPROBE_ENABLE, "enable", arg);
    }

    Result<void> reset() const override {
        auto done = file::write(dir_ + "/reset", "1");
        if (!done) {
            const int code = done.error().code == ENOENT ? EOPNOTSUPP : done.error().code;
            return std::unexpected(Error{code, "reset", "the function cannot be reset by sysfs"});
        }
        return {};
    }

private:
    std::string dir_;
    ConfigSpace config_;
    std::shared_ptr<Channel> channel_;
    std::string why_;
};

Result<std::unique_ptr<DeviceBackend>>
open_sysfs(const std::string& dir, std::shared_ptr<Channel> channel, std::string why) {
    const std::string path = dir + "/config";
    file::Fd config(::open(path.c_str(), O_RDWR | O_CLOEXEC));
    if (!config) {
        const int code = errno;
        return std::unexpected(Error{code, "open", explain_device_file(code, path)});
    }
    struct stat st{};
    if (::fstat(config.get(), &st) != 0)
        return std::unexpected(Error{errno, "stat", path});
    return std::make_unique<SysfsBackend>(
        dir,
        ConfigSpace{
            .file = std::move(config), .start = 0, .size = static_cast<std::uint64_t>(st.st_size)},
        std::move(channel), std::move(why));
}

} // namespace dmaprobe
