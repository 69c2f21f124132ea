// SPDX-License-Identifier: GPL-2.0-only
/*
 * The inode of a session: an address space of its own for what is mmapped of it.
 *
 * What programs have mmapped is found, to take it away, by the address space and the
 * offset that they mmapped. All sessions of a device are opened through one node, and
 * count their offsets alike; so each has an address space of its own.
 */
#include <linux/fs.h>
#include <linux/module.h>
#include <linux/mount.h>
#include <linux/pseudo_fs.h>

#include "private.h"

static struct vfsmount *dmaprobe_mnt;
static int dmaprobe_mnt_users;

static int init_fs_context(struct fs_context *fc)
{
	return init_pseudo(fc, 0x646d6170 /* "dmap" */) ? 0 : -ENOMEM;
}

static struct file_system_type dmaprobe_fs_type = {
	.name = "dmaprobe",
	.owner = THIS_MODULE,
	.init_fs_context = init_fs_context,
	.kill_sb = kill_anon_super,
};

/* Make the inode of a session. */
struct inode *dmaprobe_inode_new(void)
{
	int ret = simple_pin_fs(&dmaprobe_fs_type, &dmaprobe_mnt, &dmaprobe_mnt_users);
	struct inode *inode;

	if (ret)
		return ERR_PTR(ret);
	inode = alloc_anon_inode(dmaprobe_mnt->mnt_sb);
	if (IS_ERR(inode))
		simple_release_fs(&dmaprobe_mnt, &dmaprobe_mnt_users);
	return inode;
}

/* Give the inode of a session back, through which nothing is mmapped any more. */
void dmaprobe_inode_put(struct inode *inode)
{
	iput(inode);
	simple_release_fs(&dmaprobe_mnt, &dmaprobe_mnt_users);
}
