// SPDX-License-Identifier: GPL-2.0-only
// Names of PCI ids. pci.ids has a line for each vendor ("8086  Intel Corporation") and class ("C 01
// Mass storage controller"); lines of their devices and subclasses begin with a tab, those below
// with two.
#include "names.h"

#include <charconv>
#include <cstdlib>
#include <fstream>
#include <optional>
#include <string_view>
#include <unordered_map>

namespace tool {

namespace {

struct Ids {
    std::unordered_map<unsigned, std::string> vendors;
    std::unordered_map<unsigned, std::string> devices; // by vendor << 16 | device
    std::unordered_map<unsigned, std::string> classes; // by class << 8 | subclass; 0xff: all
};

constexpr unsigned any_subclass = 0xff;

/// Cut a number of so many hexadecimal digits, and the blanks behind it, off a line.
std::optional<unsigned> cut_id(std::string_view& line, std::size_t digits) {
    unsigned id = 0;
    const std::string_view text = line.substr(0, digits);
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), id, 16);
    if (error != std::errc() || end != text.data() + text.size() || text.size() != digits)
        return std::nullopt;
    line.remove_prefix(digits);
    line.remove_prefix(std::min(line.find_first_not_of(' '), line.size()));
    return id;
}

Ids read(std::istream& file) {
    Ids ids;
    std::optional<unsigned> vendor;
    std::optional<unsigned> device_class;
    for (std::string text; std::getline(file, text);) {
        std::string_view line = text;
        if (line.empty() || line.starts_with('#') || line.starts_with("\t\t"))
            continue;
        if (line.starts_with('\t')) {
            line.remove_prefix(1);
            const auto id = cut_id(line, vendor ? 4 : 2);
            if (id && vendor)
                ids.devices[*vendor << 16 | *id] = line;
            else if (id && device_class)
                ids.classes[*device_class << 8 | *id] = line;
            continue;
        }
        vendor.reset();
        device_class.reset();
        if (line.starts_with("C ")) {
            line.remove_prefix(2);
            device_class = cut_id(line, 2);
            if (device_class)
                ids.classes[*device_class << 8 | any_subclass] = line;
        } else {
            vendor = cut_id(line, 4);
            if (vendor)
                ids.vendors[*vendor] = line;
        }
    }
    return ids;
}

Ids load() {
    if (const char* path = std::getenv("DMAPROBE_PCI_IDS")) {
        std::ifstream file(path);
        return read(file);
    }
    for (const char* path : {"/usr/share/hwdata/pci.ids", "/usr/share/misc/pci.ids"})
        if (std::ifstream file(path); file)
            return read(file);
    return {};
}

std::string find(const std::unordered_map<unsigned, std::string>& names, unsigned id) {
    const auto found = names.find(id);
    return found != names.end() ? found->second : "";
}

} // namespace

Names names_of(const dmaprobe::PciDevice& device) {
    static const Ids ids = load();
    const unsigned subclass = device.class_code >> 8;
    Names names{.vendor = find(ids.vendors, device.vendor),
                .device = find(ids.devices, unsigned{device.vendor} << 16 | device.device),
                .class_name = find(ids.classes, subclass)};
    if (names.class_name.empty())
        names.class_name = find(ids.classes, subclass | any_subclass);
    return names;
}

std::string names_text(const Names& names) {
    std::string text = names.vendor;
    if (!names.device.empty())
        text += (text.empty() ? "" : " ") + names.device;
    if (names.class_name.empty() || text.empty())
        return names.class_name + text;
    return names.class_name + ": " + text;
}

} // namespace tool
