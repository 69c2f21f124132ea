// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the IOMMU's page tables say, in terms of the session's memory.
 *
 * The answer comes from iommu_iova_to_phys() alone; no record of what was mapped or
 * linked goes into it. The kernel frees page tables without waiting for readers, so a
 * walk excludes everything in dmaprobe that changes them, for a bounded number of
 * granules at a time. The memory they lead to is looked up afterwards, without a lock.
 */
#include <linux/capability.h>
#include <linux/overflow.h>
#include <linux/uaccess.h>

#include "private.h"

#define TRANSLATE_MAX_LENGTH	SZ_4G

/* Granules whose translations are read at a time, with everything else excluded. */
#define WALK_BATCH	128

struct dmaprobe_walk {
	struct dmaprobe_ucmd *ucmd;
	u64 end;

	/* Translations of the granules from @first on, without holes between. */
	u64 first;
	u32 nr;
	u64 granule;
	phys_addr_t phys[WALK_BATCH];

	/* Where the last granule was found: the next is likely to follow it. */
	struct dmaprobe_memory *mem;
	u64 expected;		/* offset in it */
};

static phys_addr_t translate_one(const struct dmaprobe_device *dd, u64 iova)
{
	const struct iommu_domain_geometry *geometry = &dd->domain->geometry;

	/*
	 * Page-table walkers need not cope with what no address can be. An
	 * identity domain has no tables, and may have no aperture.
	 */
	if (dmaprobe_translates(dd) &&
	    (iova < geometry->aperture_start || iova > geometry->aperture_end))
		return 0;
	return iommu_iova_to_phys(dd->domain, iova);
}

/* Read the translations from the granule of @iova on. */
static int read_tables(struct dmaprobe_walk *w, u64 iova)
{
	struct dmaprobe_device *dd = w->ucmd->session->dd;

	cond_resched();
	guard(mutex)(&dd->group->turn);
	if (dmaprobe_interrupted())
		return -EINTR;
	guard(rwsem_write)(&dd->group->lock);
	if (dd->unplugged)
		return -ENODEV;
	if (!dd->domain)
		return -EOPNOTSUPP;
	if (dmaprobe_group_is_shared(&dd->pdev->dev))
		return -EBUSY;
	guard(mutex)(&dd->group->walk);
	w->granule = dmaprobe_granule(dd);
	w->first = iova & ~(w->granule - 1);
	for (w->nr = 0; w->nr < WALK_BATCH; w->nr++) {
		u64 at = w->first + w->nr * w->granule;

		if (at >= w->end || at < w->first)
			break;
		w->phys[w->nr] = translate_one(dd, at);
	}
	return 0;
}

static void set_memory(struct dmaprobe_walk *w, struct dmaprobe_memory *mem)
{
	if (w->mem)
		dmaprobe_object_put(&w->mem->obj);
	w->mem = mem;
}

/* Find the memory at @phys: 1, 0 or -EINTR. *@length, inside the page, shrinks to what is alike. */
static int find_memory(struct dmaprobe_walk *w, phys_addr_t phys, u64 *offset, u64 *length)
{
	struct dmaprobe_object *obj;
	u64 len = *length;
	unsigned long id;

	if (w->mem && dmaprobe_memory_find(w->mem, phys, w->expected, offset, length))
		return 1;

	xa_for_each_marked(&w->ucmd->session->objects, id, obj, DMAPROBE_MARK_PAGES) {
		struct dmaprobe_memory *mem;

		if (dmaprobe_interrupted())
			return -EINTR;
		cond_resched();
		mem = dmaprobe_memory_get(w->ucmd, id);
		if (IS_ERR(mem))
			continue;
		if (dmaprobe_memory_find(mem, phys, 0, offset, &len)) {
			set_memory(w, mem);
			*length = len;
			return 1;
		}
		dmaprobe_object_put(&mem->obj);
	}
	*length = min(*length, len);
	return 0;
}

/* Describe the bytes from @iova to the end of its granule, or to the end. */
static int describe(struct dmaprobe_walk *w, u64 iova, struct dmaprobe_extent *ext)
{
	phys_addr_t phys;
	u64 offset;
	int ret;

	if (!w->nr || iova - w->first >= w->nr * w->granule) {
		ret = read_tables(w, iova);
		if (ret)
			return ret;
	}
	phys = w->phys[(iova - w->first) / w->granule];
	memset(ext, 0, sizeof(*ext));
	ext->iova = iova;
	offset = iova & (w->granule - 1);
	ext->length = min(w->end - iova, w->granule - offset);
	if (!phys)
		return 0;

	ext->phys = phys + offset;
	ret = find_memory(w, ext->phys, &offset, &ext->length);
	if (ret < 0)
		return ret;
	if (!ret) {
		ext->kind = DMAPROBE_EXTENT_FOREIGN;
		return 0;
	}
	ext->kind = DMAPROBE_EXTENT_BUFFER;
	ext->buffer_id = w->mem->obj.id;
	ext->buffer_offset = offset;
	w->expected = offset + ext->length;
	return 0;
}

/* Let @ext grow by @next when that leads to where @ext ends. */
static bool merge(struct dmaprobe_extent *ext, const struct dmaprobe_extent *next, u32 flags)
{
	bool adjacent = ext->phys + ext->length == next->phys;

	if (ext->kind != next->kind || ext->buffer_id != next->buffer_id)
		return false;
	if (ext->kind == DMAPROBE_EXTENT_BUFFER &&
	    (ext->buffer_offset + ext->length != next->buffer_offset ||
	     ((flags & DMAPROBE_TRANSLATE_PHYS) && !adjacent)))
		return false;
	if (ext->kind == DMAPROBE_EXTENT_FOREIGN && !adjacent)
		return false;
	ext->length += next->length;
	return true;
}

/* Find the extent at @iova. *@next is what describe() said there, and where it ends. */
static int find_extent(struct dmaprobe_walk *w, struct dmaprobe_extent *ext,
		       struct dmaprobe_extent *next, u32 flags)
{
	u64 iova = next->iova + next->length;
	int ret;

	*ext = *next;
	for (; iova < w->end; iova += next->length) {
		ret = describe(w, iova, next);
		if (ret || !merge(ext, next, flags))
			return ret;
	}
	return 0;
}

static int translate(struct dmaprobe_walk *w)
{
	struct dmaprobe_translate *cmd = w->ucmd->cmd;
	struct dmaprobe_extent __user *out = u64_to_user_ptr(cmd->extents);
	u32 flags = cmd->flags, room = cmd->nr_extents;
	struct dmaprobe_extent ext, next;
	u64 iova = cmd->iova;
	int ret;

	cmd->nr_extents = 0;
	ret = describe(w, iova, &next);
	while (!ret && iova < w->end && cmd->nr_extents < room) {
		ret = find_extent(w, &ext, &next, flags);
		if (ret)
			break;
		iova = ext.iova + ext.length;
		if (!(flags & DMAPROBE_TRANSLATE_PHYS))
			ext.phys = 0;
		if (copy_to_user(out++, &ext, sizeof(ext)))
			return -EFAULT;
		cmd->nr_extents++;
	}
	cmd->translated = iova - cmd->iova;
	return ret;
}

int dmaprobe_op_translate(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_translate *cmd = ucmd->cmd;
	struct dmaprobe_walk w __uninitialized;
	int ret;

	w.ucmd = ucmd;
	w.nr = 0;
	w.mem = NULL;
	w.expected = 0;
	if (!cmd->length || cmd->length > TRANSLATE_MAX_LENGTH ||
	    check_add_overflow(cmd->iova, cmd->length, &w.end) || !cmd->nr_extents)
		return -EINVAL;
	if ((cmd->flags & DMAPROBE_TRANSLATE_PHYS) && !capable(CAP_SYS_ADMIN))
		return -EPERM;
	if (cmd->buffer_id) {
		w.mem = dmaprobe_memory_get(ucmd, cmd->buffer_id);
		if (IS_ERR(w.mem))
			return READ_ONCE(ucmd->session->dd->unplugged) ? -ENODEV : PTR_ERR(w.mem);
	}
	ucmd->iova = cmd->iova;
	ucmd->length = cmd->length;
	ret = translate(&w);
	set_memory(&w, NULL);
	return ret;
}
