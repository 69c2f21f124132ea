// SPDX-License-Identifier: GPL-2.0-only
/* Buffers of the program's own memory. */
#include <linux/mm.h>
#include <linux/sizes.h>
#include <linux/uaccess.h>

#include "private.h"

#define PIN_MAX_LENGTH	SZ_1G

/* Pages that are pinned and unpinned without a look at signals and scheduler. */
#define PIN_BATCH	512UL

/* Each pin adds 1024 to the reference count of a small page, which must not wrap. */
#define PIN_MAX_REFS	(INT_MAX / 2)

/* Unpin the pages of a buffer. */
void dmaprobe_unpin(struct dmaprobe_session *s, struct dmaprobe_buffer *buf)
{
	struct dmaprobe_memory *mem = &buf->mem;
	unsigned long done, n;

	for (done = 0; done < mem->nr_pages; done += n) {
		n = min(mem->nr_pages - done, PIN_BATCH);
		unpin_user_pages_dirty_lock(mem->pages + done, n, !buf->read_only);
		cond_resched();
	}
	atomic_long_sub(mem->nr_pages, &s->nr_pinned);
}

/*
 * Charge what pins of @n more pages keep: of a huge page all of it, so that *@held grows by that,
 * once for each run of its pages, one after the other.
 */
static int charge_folios(struct dmaprobe_session *s, struct dmaprobe_buffer *buf,
			 unsigned long nr, unsigned long n, unsigned long *held)
{
	struct dmaprobe_memory *mem = &buf->mem;
	unsigned long i, charge;

	for (i = mem->nr_pages - n; i < mem->nr_pages; i++) {
		struct folio *folio = page_folio(mem->pages[i]);

		/* Memory of a device, for which the DMA API has other ways. */
		if (is_zone_device_page(mem->pages[i]))
			return -EFAULT;
		if (folio_ref_count(folio) > PIN_MAX_REFS)
			return -ENOMEM;
		if (!i || mem->pages[i] != mem->pages[i - 1] + 1 ||
		    page_folio(mem->pages[i - 1]) != folio)
			*held += folio_nr_pages(folio);
	}
	charge = *held + (nr - mem->nr_pages);
	if (charge > buf->charged && dmaprobe_charge(s, charge - buf->charged))
		return -ENOMEM;
	if (charge < buf->charged)
		dmaprobe_uncharge(s, buf->charged - charge);
	buf->charged = charge;
	return 0;
}

static int pin_pages(struct dmaprobe_session *s, struct dmaprobe_buffer *buf,
		     unsigned long addr, unsigned long nr)
{
	unsigned int flags = FOLL_LONGTERM | (buf->read_only ? 0 : FOLL_WRITE);
	struct dmaprobe_memory *mem = &buf->mem;
	unsigned long held = 0;

	while (mem->nr_pages < nr) {
		unsigned long n = min(nr - mem->nr_pages, PIN_BATCH);
		int got, ret;

		if (dmaprobe_cancelled())
			return -EINTR;
		got = pin_user_pages_fast(addr + (mem->nr_pages << PAGE_SHIFT),
					  n, flags, mem->pages + mem->nr_pages);
		if (got <= 0) {
			if (dmaprobe_cancelled())
				return -EINTR;
			/* The last two: no memory to move the pages to. */
			return got == -ENOMEM || got == -EAGAIN || got == -EBUSY ?
				-ENOMEM : -EFAULT;
		}
		mem->nr_pages += got;
		atomic_long_add(got, &s->nr_pinned);
		ret = charge_folios(s, buf, nr, got, &held);
		if (ret)
			return ret;
		cond_resched();
	}
	return 0;
}

int dmaprobe_op_buffer_pin(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_buffer_pin *cmd = ucmd->cmd;
	struct dmaprobe_session *s = ucmd->session;
	struct dmaprobe_buffer *buf;
	unsigned long nr;
	int ret;

	if (!cmd->length || cmd->length > PIN_MAX_LENGTH)
		return -EINVAL;
	if (cmd->addr != (unsigned long)cmd->addr ||
	    !access_ok(u64_to_user_ptr(cmd->addr), cmd->length))
		return -EFAULT;

	nr = PAGE_ALIGN(offset_in_page(cmd->addr) + cmd->length) >> PAGE_SHIFT;
	buf = dmaprobe_buffer_new(s, nr, nr);
	if (IS_ERR(buf))
		return PTR_ERR(buf);
	buf->mem.length = cmd->length;
	buf->mem.first_offset = offset_in_page(cmd->addr);
	buf->pinned = true;
	buf->read_only = cmd->flags & DMAPROBE_BUFFER_PIN_READ_ONLY;

	ret = pin_pages(s, buf, cmd->addr & PAGE_MASK, nr);
	if (!ret)
		ret = dmaprobe_buffer_add(ucmd, buf);
	if (ret) {
		dmaprobe_buffer_free(s, buf);
		return ret;
	}
	cmd->id = ucmd->made;
	return 0;
}
