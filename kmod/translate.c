// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the IOMMU's page tables say, in terms of the session's memory.
 *
 * The answer comes from iommu_iova_to_phys() alone; no record of what was mapped
 * or linked goes into it.
 */
#include <linux/capability.h>
#include <linux/overflow.h>
#include <linux/uaccess.h>

#include "private.h"

#define TRANSLATE_MAX_LENGTH	SZ_4G

/* Extents that are found before they are told. */
#define TRANSLATE_BATCH		8

/* Where the last granule was found: the next is likely to follow it. */
struct cursor {
	const struct dmaprobe_ucmd *ucmd;
	struct dmaprobe_session *session;
	struct dmaprobe_memory *mem;
	u64 expected;		/* offset in it */
};

/* Between two batches, the cursor holds nothing. */
struct batch {
	struct dmaprobe_extent extents[TRANSLATE_BATCH];
	u32 nr;
	u64 iova;		/* translated up to here */
	u32 id;			/* of what to look into first; 0: nothing */
	u64 expected;
};

static void cursor_set(struct cursor *c, struct dmaprobe_memory *mem)
{
	if (c->mem)
		dmaprobe_object_put(&c->mem->obj);
	c->mem = mem;
}

/*
 * Find the memory at @phys. *@length, at most up to the end of the page, shrinks to
 * the bytes that are alike.
 */
static bool cursor_find(struct cursor *c, phys_addr_t phys, u64 *offset,
			u64 *length)
{
	struct dmaprobe_object *obj;
	u64 len = *length;
	unsigned long id;

	if (c->mem && dmaprobe_memory_find(c->mem, phys, c->expected, offset,
					   length))
		return true;

	xa_for_each_marked(&c->session->objects, id, obj, DMAPROBE_MARK_PAGES) {
		struct dmaprobe_memory *mem = dmaprobe_memory_get(c->ucmd, id);

		if (IS_ERR(mem))
			continue;
		if (dmaprobe_memory_find(mem, phys, 0, offset, &len)) {
			cursor_set(c, mem);
			*length = len;
			return true;
		}
		dmaprobe_object_put(&mem->obj);
	}
	*length = min(*length, len);
	return false;
}

/* Describe the bytes from @iova to the end of its granule, or to @end. */
static void translate_one(struct cursor *c, u64 iova, u64 end,
			  struct dmaprobe_extent *ext)
{
	struct dmaprobe_device *dd = c->session->dd;
	struct iommu_domain *domain = dd->domain;
	u64 granule = dmaprobe_granule(dd), offset;
	phys_addr_t phys = 0;

	memset(ext, 0, sizeof(*ext));
	ext->iova = iova;
	ext->length = min(end - iova, granule - (iova & (granule - 1)));

	/*
	 * Page-table walkers need not cope with what no address can be. An
	 * identity domain has no tables, and may have no aperture.
	 */
	if (!dmaprobe_translates(dd) ||
	    (iova >= domain->geometry.aperture_start &&
	     iova <= domain->geometry.aperture_end))
		phys = iommu_iova_to_phys(domain, iova);
	if (!phys)
		return;

	ext->phys = phys;
	if (cursor_find(c, phys, &offset, &ext->length)) {
		ext->kind = DMAPROBE_EXTENT_BUFFER;
		ext->buffer_id = c->mem->obj.id;
		ext->buffer_offset = offset;
		c->expected = offset + ext->length;
	} else {
		ext->kind = DMAPROBE_EXTENT_FOREIGN;
	}
}

/* Let @ext grow by @next when that leads to where @ext ends. */
static bool merge(struct dmaprobe_extent *ext,
		  const struct dmaprobe_extent *next, u32 flags)
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

static int translate(struct cursor *c, const struct dmaprobe_translate *cmd,
		     struct batch *b, u32 room)
{
	u64 iova = b->iova, end = cmd->iova + cmd->length;
	struct dmaprobe_extent ext, next;

	translate_one(c, iova, end, &next);
	do {
		ext = next;
		for (iova += next.length; iova < end; iova += next.length) {
			if (dmaprobe_interrupted())
				return -EINTR;
			cond_resched();
			translate_one(c, iova, end, &next);
			if (!merge(&ext, &next, cmd->flags))
				break;
		}

		if (!(cmd->flags & DMAPROBE_TRANSLATE_PHYS))
			ext.phys = 0;
		b->extents[b->nr++] = ext;
		b->iova = iova;
	} while (iova < end && b->nr < room);
	return 0;
}

/* Find up to @room extents, with the device there. */
static int translate_batch(const struct dmaprobe_ucmd *ucmd, struct batch *b, u32 room)
{
	struct dmaprobe_session *s = ucmd->session;
	struct cursor c = { .ucmd = ucmd, .session = s, .expected = b->expected };
	int ret;

	guard(rwsem_read)(&s->dd->unplug_lock);
	if (!s->dd->pdev)
		return -ENODEV;
	if (!s->dd->domain)
		return -EOPNOTSUPP;
	if (b->id) {
		c.mem = dmaprobe_memory_get(ucmd, b->id);
		if (IS_ERR(c.mem))
			return PTR_ERR(c.mem);
	}
	b->nr = 0;
	ret = translate(&c, ucmd->cmd, b, room);
	b->id = c.mem ? c.mem->obj.id : 0;
	b->expected = c.expected;
	cursor_set(&c, NULL);
	return ret;
}

int dmaprobe_op_translate(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_translate *cmd = ucmd->cmd;
	struct dmaprobe_extent __user *out = u64_to_user_ptr(cmd->extents);
	struct batch b __uninitialized;
	u64 end;
	u32 nr = 0;

	if (!cmd->length || cmd->length > TRANSLATE_MAX_LENGTH ||
	    check_add_overflow(cmd->iova, cmd->length, &end) ||
	    !cmd->nr_extents)
		return -EINVAL;
	if ((cmd->flags & DMAPROBE_TRANSLATE_PHYS) && !capable(CAP_SYS_ADMIN))
		return -EPERM;

	b.iova = cmd->iova;
	b.id = cmd->buffer_id;
	b.expected = 0;
	do {
		int ret = translate_batch(ucmd, &b, min(cmd->nr_extents - nr, TRANSLATE_BATCH));

		/* What was looked into last can have been freed since. */
		if (ret == -ENOENT && nr) {
			b.id = 0;
			continue;
		}
		if (ret)
			return ret;
		if (copy_to_user(out + nr, b.extents, b.nr * sizeof(*out)))
			return -EFAULT;
		nr += b.nr;
	} while (b.iova < end && nr < cmd->nr_extents);
	cmd->nr_extents = nr;
	cmd->translated = b.iova - cmd->iova;
	return 0;
}
